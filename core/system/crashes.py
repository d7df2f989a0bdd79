"""Whether a process that is gone crashed by itself, or was ended from outside.

A recipe whose kernel crashes must not be tried for ever; one that was interrupted, preempted or cut
off by a power failure must be tried again. So each trial leaves marks: where it ran, and a file to
which the interpreter's fault handler writes as the process dies of a fault of its own
(a segmentation fault, an abort). A process that is killed from outside leaves that file empty. The
kernel's count of processes that ran out of memory tells the one kill that is a recipe's own.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_COUNTERS = (Path("/sys/fs/cgroup/memory.events"), Path("/proc/vmstat"))
"""Where Linux counts kills for lack of memory: of this container if there is one, else of all."""


class CrashWatch:
    """Lets the fault handler write to a file while trials run.

    Args:
        path: The file; it is made, and removed when the watch is closed in peace.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._before = faulthandler.is_enabled()
        self._file = None
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("w", encoding="utf-8")
            faulthandler.enable(self._file)

    def mark(self) -> dict[str, Any]:
        """Return what the next start needs to tell how this process ended, JSON-ready."""
        if self._file is None:
            return {}
        return {
            "host": socket.gethostname(),
            "boot": _boot(),
            "pid": os.getpid(),
            "faults": str(self._path),
            "starved": _starved(),
        }

    def close(self) -> None:
        """Stop watching; a fault handler that was there before goes back to standard error."""
        if self._file is None:
            return
        faulthandler.disable()
        self._file.close()
        self._file = None
        self._path.unlink(missing_ok=True)
        if self._before and sys.__stderr__ is not None:
            with contextlib.suppress(OSError, ValueError):
                faulthandler.enable(sys.__stderr__)


def cause_of_death(mark: Mapping[str, Any]) -> str:
    """Return what the process that left a mark died of by itself; '' where nothing proves a fault.

    Args:
        mark: What :meth:`CrashWatch.mark` gave.
    """
    if not mark or mark.get("host") != socket.gethostname():
        return ""
    try:
        written = Path(str(mark["faults"])).read_text(
            encoding="utf-8", errors="replace"
        )
    except OSError:
        written = ""
    if written.startswith(("Fatal Python error", "Windows fatal exception")):
        return written.splitlines()[0].partition(": ")[2]
    if mark.get("boot") != _boot():
        # Counts begin anew with each start of the machine.
        return ""
    before = mark.get("starved")
    now = _starved()
    was_starved = before is not None and now is not None and now > before
    return "out of memory" if was_starved else ""


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _starved() -> int | None:
    """Return how many processes the kernel has killed for lack of memory; None where unknown."""
    for path in _COUNTERS:
        with contextlib.suppress(OSError, ValueError, KeyError):
            counts = dict(line.split() for line in path.read_text().splitlines())
            return int(counts["oom_kill"])
    return None
