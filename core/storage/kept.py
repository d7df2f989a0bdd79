"""The runs that octavo keeps in its own folder: those that were given no history of their own."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from .aside import BESIDE
from .stores import home

DAMAGED = -1
"""Trials of a file that cannot be read."""


@dataclass(frozen=True)
class KeptRun:
    """A history file in octavo's folder.

    Attributes:
        path: Where it is.
        bytes: Its size, with what lies beside it.
        written: When it was last written, in seconds since 1970.
        trials: How many it holds; :data:`DAMAGED` where it cannot be read.
    """

    path: Path
    bytes: int
    written: float
    trials: int


def folder() -> Path:
    """Return where the runs are kept."""
    return home() / "runs"


def kept_runs() -> tuple[KeptRun, ...]:
    """Return the runs that are kept, the latest first."""
    found = []
    for path in folder().glob("*.db"):
        with contextlib.suppress(FileNotFoundError):
            size = sum(file.stat().st_size for file in _files(path))
            found.append(KeptRun(path, size, path.stat().st_mtime, _trials(path)))
    return tuple(sorted(found, key=lambda run: -run.written))


def prune(older_than: float) -> tuple[Sequence[KeptRun], Sequence[KeptRun]]:
    """Delete runs that nobody uses, and lock files that were left behind.

    Args:
        older_than: Seconds since they were last written.

    Returns:
        Those that were deleted; those that are old enough and in use.
    """
    deleted: list[KeptRun] = []
    in_use: list[KeptRun] = []
    for run in kept_runs():
        if time.time() - run.written < older_than:
            continue
        (deleted if _deleted(run.path) else in_use).append(run)
    for lock in folder().glob("*.db.lock"):
        if not lock.with_suffix("").exists():
            lock.unlink(missing_ok=True)
    return deleted, in_use


def _deleted(path: Path) -> bool:
    """Delete a run and say so; False where another process holds its lock."""
    lock = FileLock(f"{path}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        return False
    try:
        for file in _files(path):
            file.unlink(missing_ok=True)
        # Before it is released, so that nobody takes a lock that is about to go.
        with contextlib.suppress(OSError):
            Path(f"{path}.lock").unlink(missing_ok=True)
    finally:
        lock.release()
    return True


def _files(path: Path) -> list[Path]:
    """Return a history's file and what lies beside it."""
    beside = [path.with_name(f"{path.name}{end}") for end in BESIDE]
    return [path, *(file for file in beside if file.exists())]


def _trials(path: Path) -> int:
    """Count finished trials, the float model's aside."""
    query = "SELECT count(*) FROM trials WHERE state IN ('COMPLETE', 'PRUNED')"
    try:
        address = f"{path.absolute().as_uri()}?mode=ro"
        with contextlib.closing(sqlite3.connect(address, uri=True)) as connection:
            (count,) = connection.execute(query).fetchone()
    except (sqlite3.Error, UnicodeDecodeError):
        return DAMAGED
    return max(0, int(count) - 1)
