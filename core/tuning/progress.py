"""What a run tells while it goes on, and to whom."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from octavo.core.values.recipe import Recipe
from octavo.core.values.trial import Trial

_PACKAGE = str(Path(__file__).parents[2])


class Progress:
    """Told how a run goes; subclass and override what is of interest. It must not raise."""

    def started(
        self, baseline: Trial, goal: str, max_trials: int, space_size: int
    ) -> None:
        """The float model is scored and the search begins."""

    def trying(self, number: int, recipe: Recipe) -> None:
        """A trial begins."""

    def finished(
        self, trial: Trial, best: Trial | None, seconds_left: float | None
    ) -> None:
        """A trial ended and is on disk.

        ``seconds_left`` estimates the rest of the search, None while unknown.
        """

    def note(self, text: str) -> None:
        """Something that the user should know (a warning, a decision)."""

    def ended(self, reason: str) -> None:
        """The search is over."""


def tell(progress: Sequence[Progress], text: str) -> None:
    """Pass a note on.

    Where nobody listens it becomes a Python warning, so that it is never lost.
    """
    for listener in progress:
        listener.note(text)
    if not progress:
        warnings.warn(text, stacklevel=level_of_the_caller())


def level_of_the_caller() -> int:
    """Return the stack level, seen from whoever asks, of the first frame that is not octavo's."""
    level = 1
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
        level += 1
    return level
