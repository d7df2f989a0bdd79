"""Callbacks of strangers: one that raises costs a warning, and never the result."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from octavo.core.errors import said
from octavo.core.system.log import SHOWN, get_logger
from octavo.core.tuning.progress import Phase, Progress
from octavo.core.values.recipe import Recipe
from octavo.core.values.trial import Trial

from .remarks import level_of_the_caller

logger = get_logger("tuning")


class Guarded(Progress):
    """Passes on what it is told; what a callback raises is told once for each of its methods.

    Args:
        inner: The callback.
    """

    def __init__(self, inner: Progress) -> None:
        self._inner = inner
        self._told: set[str] = set()

    def phase(self, phase: Phase) -> None:
        """Pass on."""
        self._call_if_there("phase", phase)

    def started(
        self, baseline: Trial, goal: str, max_trials: int, space_size: int
    ) -> None:
        """Pass on."""
        self._call("started", baseline, goal, max_trials, space_size)

    def trying(self, number: int, recipe: Recipe) -> None:
        """Pass on."""
        self._call("trying", number, recipe)

    def finished(
        self, trial: Trial, best: Trial | None, seconds_left: float | None
    ) -> None:
        """Pass on."""
        self._call("finished", trial, best, seconds_left)

    def note(self, text: str) -> None:
        """Pass on; the log and the result have it all the same."""
        self._call("note", text)

    def ended(self, reason: str) -> None:
        """Pass on."""
        self._call("ended", reason)

    def closed(self) -> None:
        """Pass on."""
        self._call_if_there("closed")

    def _call_if_there(self, method: str, *arguments: Any) -> None:
        """Call a method that a callback which is no :class:`Progress` need not have."""
        if hasattr(self._inner, method):
            self._call(method, *arguments)

    def _call(self, method: str, *arguments: Any) -> None:
        try:
            getattr(self._inner, method)(*arguments)
        except Exception as error:
            self._warn(method, error)

    def _warn(self, method: str, error: Exception) -> None:
        if method not in self._told:
            self._told.add(method)
            name = type(self._inner).__qualname__
            text = f"callback {name}.{method} raised {said(error)}; the run goes on without it"
            logger.warning("%s", text, exc_info=error, extra={SHOWN: True})
            # The caller's own code is to be changed.
            warnings.warn(text, stacklevel=level_of_the_caller())


def guarded(
    hook: Callable[[Trial], None], tell: Callable[[str], None]
) -> Callable[[Trial], None]:
    """Return a hook of plugins that tells once what it raises, and never raises."""
    told: set[str] = set()

    def call(trial: Trial) -> None:
        try:
            hook(trial)
        except Exception as error:
            if not told:
                told.add("hook")
                tell(
                    f"a plugin's octavo_trial_finished raised {said(error)}; "
                    "the run goes on without it"
                )

    return call
