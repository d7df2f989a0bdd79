"""Remarks of one run: to its listeners, to the log, and into its result."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from octavo.core.system.log import Area, hearing, log
from octavo.core.tuning.progress import Progress

_PACKAGE = str(Path(__file__).parents[3])


class Remarks:
    """Passes on what a user should know, once, and keeps it for the result.

    Args:
        listeners: Are told each remark.
    """

    def __init__(self, listeners: Sequence[Progress] = ()) -> None:
        self._listeners = tuple(listeners)
        self._told: list[str] = []

    @property
    def texts(self) -> tuple[str, ...]:
        """All that was told so far, in order."""
        return tuple(self._told)

    def tell(
        self, text: str, area: Area = "tuning", level: int = logging.WARNING
    ) -> None:
        """Pass a remark on; one that was told before is not told again."""
        if text in self._told:
            return
        self._told.append(text)
        if level >= logging.WARNING:
            for listener in self._listeners:
                listener.note(text)
        log(text, area, level, shown=bool(self._listeners))

    def advise(self, text: str) -> None:
        """Tell what the caller's own code should change.

        Where no listener shows it, it is a warning of Python too, at the line that called octavo.
        """
        is_new = text not in self._told
        self.tell(text)
        if is_new and not self._listeners:
            warnings.warn(text, stacklevel=level_of_the_caller())

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Let remarks from the depths (plugins, backends, calibration) come here."""
        with hearing(self.tell):
            yield


def level_of_the_caller() -> int:
    """Return the stack level, seen from whoever asks, of the first frame that is not octavo's."""
    level = 1
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
        level += 1
    return level


__all__ = ["Remarks", "level_of_the_caller"]
