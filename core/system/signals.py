"""Signals: time limits that code cannot swallow, and interruptions that lose nothing.

All of it works in the main thread only, as Python hands signals to no other; elsewhere each of
these lets the code run as it is.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from octavo.core.errors import TrialTimeout

INSIST = 0.5
"""Seconds between two alarms, for code that caught the one before and went on."""

PATIENCE = 5
"""So many requests to end break off even what is to be done as a whole: it may hang (a database
that cannot be reached)."""

LONGEST = 1e8
"""Seconds that a timer of the system takes (three years)."""

# Windows has no SIGHUP.
_ENDING_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
ENDINGS = tuple(
    getattr(signal, name) for name in _ENDING_NAMES if hasattr(signal, name)
)
"""What asks a process to end: Ctrl-C, a scheduler or a preempted machine, a terminal that is
closed."""

Handler = Callable[[int, FrameType | None], Any]


_deferring: list[bool] = []
"""Holds one where the main thread keeps signals back."""


class OutOfTime(BaseException):
    """The time limit of the search has passed.

    No ``Exception``, so that probes and scores do not catch it.
    """


class _Insisted(BaseException):
    """Raised where code caught a TrialTimeout as any ``Exception`` and went on."""


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Let the running code end with TrialTimeout after ``seconds``.

    Outside the main thread nothing can interrupt it: then the time is looked at when it has ended.

    Raises:
        TrialTimeout: If the time had passed, whatever became of the code, even if it caught the
            first TrialTimeout and returned as if nothing had been.
    """
    if seconds is None:
        yield
        return
    ends = time.monotonic() + seconds
    alarms = 0

    def expired(signum: int, frame: FrameType | None) -> None:
        nonlocal alarms
        alarms += 1
        raise TrialTimeout(late) if alarms == 1 else _Insisted

    late = f"the trial ran past its time limit of {seconds:g} s"
    try:
        with _alarm(seconds, expired):
            yield
    except TrialTimeout:
        raise
    except (_Insisted, Exception) as error:
        if alarms:
            raise TrialTimeout(late) from error
        raise
    if time.monotonic() > ends:
        raise TrialTimeout(
            f"{late}; it returned a score all the same, which does not count"
        )


@contextmanager
def deadline(seconds: float | None) -> Iterator[None]:
    """Raise :class:`OutOfTime` in the running code after ``seconds``.

    It comes again and again until the code ends.

    Raises:
        OutOfTime: At once where no time is left.
    """
    if seconds is None:
        yield
        return
    if seconds <= 0:
        raise OutOfTime

    def expired(signum: int, frame: FrameType | None) -> None:
        raise OutOfTime

    with _alarm(seconds, expired):
        yield


@contextmanager
def _alarm(seconds: float, handler: Handler) -> Iterator[None]:
    """Call a handler in the running code after ``seconds``, and every :data:`INSIST` from then."""
    if not (_in_main_thread() and hasattr(signal, "SIGALRM")):
        yield
        return
    running = True

    def guarded(signum: int, frame: FrameType | None) -> None:
        # An alarm on the way out, between the code's end and the timer's, finds nothing to end.
        if running:
            handler(signum, frame)

    before = signal.signal(signal.SIGALRM, guarded)
    signal.setitimer(signal.ITIMER_REAL, min(seconds, LONGEST), INSIST)
    try:
        yield
    finally:
        running = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end a run as Ctrl-C does: the best so far is kept."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with _handled({s: stop for s in ENDINGS if s != signal.SIGINT}):
        yield


@contextmanager
def deferred_interrupts() -> Iterator[None]:
    """Keep signals from what must be done as a whole; KeyboardInterrupt is raised after it.

    Whoever asks for the :data:`PATIENCE`-th time means it: then it is raised at once.
    """
    came: list[int] = []

    def keep(signum: int, frame: FrameType | None) -> None:
        came.append(signum)
        if len(came) >= PATIENCE:
            raise KeyboardInterrupt

    # Inside of another such block it is that one which hears them, at its end.
    is_outermost = not _deferring and _in_main_thread()
    if not is_outermost:
        yield
        return
    _deferring.append(True)
    try:
        with _handled(dict.fromkeys(ENDINGS, keep)):
            yield
    finally:
        _deferring.clear()
    if came:
        raise KeyboardInterrupt


@contextmanager
def _handled(handlers: dict[Any, Handler]) -> Iterator[None]:
    if not _in_main_thread():
        yield
        return
    before: dict[Any, Any] = {}
    for number, handler in handlers.items():
        # A signal that is ignored (nohup) stays so; one whose handler is not Python's cannot be put
        # back.
        if signal.getsignal(number) not in (signal.SIG_IGN, None):
            before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
