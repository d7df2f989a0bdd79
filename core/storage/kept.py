"""The runs that octavo keeps in its own folder: those that were given no history of their own."""

from __future__ import annotations

import contextlib
import re
import shutil
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import Timeout

from octavo.core.system.log import get_logger

from .aside import BESIDE
from .file_lock import held
from .stores import home

logger = get_logger("storage")

KEPT_RUNS = 100
"""Runs that octavo keeps in its own folder; the oldest beyond them go when another begins."""

KEPT_DAYS = 90
"""Days that such a run is kept after it was last written."""

OWN_NAME = re.compile(r"\d{8}-\d{6}-\d+-\d+\.db")
"""What :func:`.stores.default_storage` calls a run; a file by another name is its owner's."""

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
            size = sum(_bytes(file) for file in _files(path))
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
        path = lock.with_suffix("")
        if not path.exists():
            _deleted(path)
    return deleted, in_use


def tidy() -> None:
    """Delete the runs that nobody named and nobody will look for.

    Beyond the latest :data:`KEPT_RUNS`, and those older than :data:`KEPT_DAYS`. A run in use is
    left alone, and so is every file whose name octavo did not choose.
    """
    dated = []
    for path in folder().glob("*.db"):
        # One that another process deletes meanwhile is gone: that is all that is wanted.
        with contextlib.suppress(OSError):
            if OWN_NAME.fullmatch(path.name):
                dated.append((path.stat().st_mtime, path))
    dated.sort(reverse=True)
    oldest = time.time() - KEPT_DAYS * 24 * 3600
    for place, (written, path) in enumerate(dated):
        is_too_much = place >= KEPT_RUNS or written < oldest
        if is_too_much and _deleted(path):
            logger.info("%s is deleted: an old run that was given no place", path)


def _deleted(path: Path) -> bool:
    """Delete a run and say so; False where another process holds its lock, or may delete it."""
    try:
        with held(path):
            for file in _files(path):
                if file.is_dir():
                    shutil.rmtree(file)
                else:
                    file.unlink(missing_ok=True)
    except (Timeout, OSError):
        return False
    return True


def _bytes(path: Path) -> int:
    """Return the size of a file, or of all files of a folder."""
    if not path.is_dir():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _files(path: Path) -> list[Path]:
    """Return a history's file and what lies beside it, files and folders."""
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
