"""What octavo tells while it works: loggers under ``octavo``, and remarks that no run loses.

The rule: what octavo does and finds goes to the loggers; a Python warning is for what the caller's
own code, or that of a plugin's author, should change. Nobody is told where nobody listens: the
logger ``octavo`` has a handler that does nothing, as libraries should.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from octavo.core.errors import AdapterFault

Area = str
"""Which logger: ``tuning``, ``storage``, ``quantizing``, ``onnx``, ..."""

Hearer = Callable[[str, Area, int], None]
"""Takes a remark: text, area, level."""

SHOWN = "shown"
"""Attribute of a log record: True where a listener of the run was told the same, and need not be
shown it again."""

_hearer: ContextVar[Hearer | None] = ContextVar("octavo_hearer", default=None)


def get_logger(area: Area) -> logging.Logger:
    """Return ``octavo.AREA``."""
    return logging.getLogger(f"octavo.{area}")


def remark(text: str, area: Area, level: int = logging.WARNING) -> None:
    """Tell something that a user should know: the run that goes on here, and the logger."""
    hearer = _hearer.get()
    if hearer is None:
        log(text, area, level, shown=False)
    else:
        hearer(text, area, level)


def log(text: str, area: Area, level: int, *, shown: bool) -> None:
    """Write a remark to its logger."""
    # Named in the record: who had something to say, and not this function.
    get_logger(area).log(level, "%s", text, extra={SHOWN: shown}, stacklevel=3)


def fault(found: AdapterFault, area: Area, stacklevel: int = 2) -> None:
    """Tell a fault of a backend's own code: its author is warned, and it is logged.

    Args:
        found: The fault.
        area: The logger's.
        stacklevel: As of ``warnings.warn``, seen from the caller.
    """
    # Logged as shown: on the command line the warning is printed already.
    log(str(found), area, logging.ERROR, shown=True)
    warnings.warn(found, stacklevel=stacklevel + 1)


@contextmanager
def hearing(hearer: Hearer) -> Iterator[None]:
    """Let remarks of the code inside go to a run."""
    before = _hearer.set(hearer)
    try:
        yield
    finally:
        _hearer.reset(before)
