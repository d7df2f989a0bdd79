"""How much of the processor others took while something was timed."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from .cgroups import cpu_quota

_PROC = Path("/proc")

SHORTEST = 0.2
"""Seconds of a span that can be told: the kernel counts in hundredths of a second."""

_BUSY = (0, 1, 2, 5, 6, 7)
"""Columns of ``/proc/stat`` that count work: user, nice, system, interrupts, and what other guests
of the same host took (steal). A guest's own time is within user's."""

_PARENT, _FIRST_TIME, _LAST_TIME = 1, 11, 14
"""Fields of ``/proc/PID/stat`` behind the name: the parent, and four times: the process's own in
user and kernel mode, and those of children that it has waited for."""


@dataclass(frozen=True)
class _Sample:
    """Seconds of processor time until a moment: of everybody, and of this process and its own."""

    at: float
    total: float
    own: float


class OthersLoad:
    """Tells how many of the cores that this process may use others took during a span.

    Others are all processes but this one, its children and theirs::

        with OthersLoad() as load:
            time_it()
        if load.cores_taken is not None and load.cores_taken > 0.1 * load.cores:
            ...

    Attributes:
        cores: How many cores this process may use: its affinity, and its container's quota.
        cores_taken: How many of them others took, on average: 0.5 is one for half of the time.
            None until the span has ended, where it was too short, and where the system does not
            count (it is not Linux): then :attr:`load_average` is all that is known.
        load_average: Processes that ran or waited, over the minute until the span's end, this one
            among them; None where unknown.
        seconds: The span's length.
    """

    def __init__(self) -> None:
        self._cpus = usable_cpus()
        self.cores = min(float(len(self._cpus)), cpu_quota() or float("inf"))
        self.cores_taken: float | None = None
        self.load_average: float | None = None
        self.seconds = 0.0
        self._before: _Sample | None = None
        self._began = time.perf_counter()

    def __enter__(self) -> OthersLoad:
        self._began = time.perf_counter()
        self._before = _sample(self._cpus)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End the span; called again it ends later."""
        self.seconds = time.perf_counter() - self._began
        self.load_average = next(iter(load_average()), None)
        after = _sample(self._cpus)
        if self._before is not None and after is not None:
            self.cores_taken = self._taken(self._before, after)

    @property
    def share(self) -> float | None:
        """What others took of the cores that this process may use, from 0 to 1; None as above."""
        return None if self.cores_taken is None else self.cores_taken / self.cores

    def _taken(self, before: _Sample, after: _Sample) -> float | None:
        span = after.at - before.at
        worked = after.total - before.total
        own = after.own - before.own
        if span < SHORTEST:
            return None
        others = max(0.0, worked - own) / span
        # With a quota of 2 on 64 cores, others may have 62 before they take any of these.
        spare = len(self._cpus) - self.cores
        return min(self.cores, max(0.0, others - spare))


def usable_cpus() -> frozenset[int]:
    """Return the numbers of the cores that this process may run on."""
    try:
        return frozenset(os.sched_getaffinity(0))
    # Only Linux has it.
    except (AttributeError, OSError):
        return frozenset(range(os.cpu_count() or 1))


def load_average() -> tuple[float, ...]:
    """Return the load over the last 1, 5 and 15 minutes; empty where the system has none."""
    try:
        return tuple(round(load, 2) for load in os.getloadavg())
    # Windows has no such function.
    except (AttributeError, OSError):
        return ()


def _sample(cpus: frozenset[int]) -> _Sample | None:
    """Return the processor times until now; None where the system does not count them."""
    try:
        ticks = os.sysconf("SC_CLK_TCK")
        own = _own_ticks()
        total = _busy_ticks(cpus)
    except (AttributeError, OSError, ValueError, IndexError, KeyError):
        return None
    return _Sample(time.monotonic(), total / ticks, own / ticks) if total else None


def _busy_ticks(cpus: frozenset[int]) -> int:
    """Return the ticks that some cores have worked; 0 where they are not counted (gVisor)."""
    wanted = {f"cpu{number}" for number in cpus}
    total = 0
    for line in (_PROC / "stat").read_text().splitlines():
        name, *columns = line.split()
        if name in wanted:
            total += sum(int(columns[column]) for column in _BUSY)
    return total


def _own_ticks() -> int:
    """Return the ticks of this process and of all that descend from it, alive or waited for.

    A child that ends within a span takes its ticks to its parent, so nothing is lost.
    """
    times: dict[int, int] = {}
    children: dict[int, list[int]] = {}
    for pid, fields in _processes():
        times[pid] = sum(int(field) for field in fields[_FIRST_TIME : _LAST_TIME + 1])
        children.setdefault(int(fields[_PARENT]), []).append(pid)
    total = 0
    waiting = [os.getpid()]
    while waiting:
        pid = waiting.pop()
        total += times[pid]
        waiting += children.get(pid, [])
    return total


def _processes() -> Iterator[tuple[int, list[str]]]:
    """Yield the id of every process and what its line says behind the name."""
    for entry in os.listdir(_PROC):
        if not entry.isdecimal():
            continue
        try:
            line = (_PROC / entry / "stat").read_bytes()
        # It ended meanwhile, or is hidden from us (hidepid).
        except OSError:
            continue
        # The name is in brackets and may hold brackets and spaces itself.
        _, _, behind = line.rpartition(b")")
        yield int(entry), behind.decode("ascii", "replace").split()


__all__ = ["OthersLoad", "load_average", "usable_cpus"]
