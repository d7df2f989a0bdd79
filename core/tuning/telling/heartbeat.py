"""Something that happens again and again while a run goes on, whatever the run is busy with."""

from __future__ import annotations

import threading
from collections.abc import Callable

PATIENCE = 1.0
"""Seconds that the end waits for a beat under way. A thread that hangs holds up no run."""


class Heartbeat:
    """Calls a function from a thread of its own, which ends with the process at the latest.

    A process that is forked from this one has no such thread.

    Args:
        beat: Called again and again; it returns the seconds until the next time.
    """

    def __init__(self, beat: Callable[[], float]) -> None:
        self._beat = beat
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, seconds: float) -> None:
        """Begin, with a first beat after so many seconds; once is enough."""
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._run, args=(seconds,), name="octavo progress", daemon=True
            )
            self._thread.start()

    def stop(self) -> None:
        """Let no further beat begin."""
        self._ended.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(PATIENCE)

    def _run(self, seconds: float) -> None:
        while not self._ended.wait(seconds):
            try:
                seconds = self._beat()
            except (OSError, ValueError):
                # What it writes to is gone, a closed pipe or file: nobody reads on there.
                return


__all__ = ["Heartbeat"]
