"""What a control group of Linux (a container, a slice) lets this process use."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_MINE = Path("/proc/self/cgroup")

_NO_LIMIT = 1 << 60
"""Bytes from which on the first version of control groups means that there is no limit."""


def cpu_quota() -> float | None:
    """Return how many cores' time the tightest group around this process may use; None for all."""
    found = []
    for folder in _folders("cpu"):
        with contextlib.suppress(OSError, ValueError):
            quota, period = (folder / "cpu.max").read_text().split()
            found.append(int(quota) / int(period))
        with contextlib.suppress(OSError, ValueError):
            allowed = int((folder / "cpu.cfs_quota_us").read_text())
            period_us = int((folder / "cpu.cfs_period_us").read_text())
            # -1 says that there is none.
            found += [allowed / period_us] if allowed > 0 else []
    return min(found, default=None)


def memory_limit(total: int | None) -> int | None:
    """Return the bytes that the tightest group around this process may use; None for all.

    Args:
        total: The machine's; a limit that is not below it is none.
    """
    found = []
    for folder in _folders("memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            with contextlib.suppress(OSError, ValueError):
                found.append(int((folder / name).read_text()))
    limit = min(found, default=_NO_LIMIT)
    return limit if limit < min(_NO_LIMIT, total or _NO_LIMIT) else None


def _folders(controller: str) -> Iterator[Path]:
    """Yield the folders of this process's group and of those around it, of both versions."""
    try:
        lines = _MINE.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        # The second version has one tree, without names of controllers.
        top = _ROOT / controllers if controllers else _ROOT
        # In a container the group's path may be the host's, and the tree begin at the group.
        inner = top / group.strip("/")
        yield from (
            folder
            for folder in (inner, *inner.parents)
            if folder == top or folder.is_relative_to(top)
        )


__all__ = ["cpu_quota", "memory_limit"]
