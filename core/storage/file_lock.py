"""The lock of a history file: a file beside it, which goes when the lock is released."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, SoftFileLock, Timeout

TRIES = 5
"""How often the lock is tried for where the one who had it is just taking its file away."""


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold the lock of a history file; the lock's own file is gone afterwards.

    A file that is locked and then deleted guards nothing for whoever opened it before: two
    processes could each hold a lock of one name. So it is deleted by its holder only, while it is
    held, and whoever locks it looks whether what he locked is still what the name stands for.

    Args:
        path: The history's.

    Raises:
        Timeout: If somebody else holds it.
        OSError: If it cannot be written.
    """
    place = lock_file(path)
    lock = _acquired(place)
    try:
        yield
    finally:
        # Windows deletes no open file: there the lock does so itself as it is released.
        if sys.platform != "win32" and not isinstance(lock, SoftFileLock):
            with contextlib.suppress(OSError):
                place.unlink(missing_ok=True)
        lock.release()


def lock_file(path: Path) -> Path:
    """Return where the lock of a history file is."""
    return path.with_name(f"{path.name}.lock")


def _acquired(place: Path) -> FileLock:
    """Return a lock that is held, of the file that the name stands for."""
    for _ in range(TRIES):
        # Released by whatever thread closes the run.
        lock = FileLock(place, timeout=0, thread_local=False)
        with _opened(place) as before:
            try:
                lock.acquire()
            except Timeout:
                if before is None or _is_still(place, before):
                    raise
                continue
            # Where a file system has no locks, the file itself is one: nobody else deletes it.
            if isinstance(lock, SoftFileLock):
                return lock
            # The same before and after it was locked: then it is what was locked.
            if before is not None and _is_still(place, before):
                return lock
        # New, or another's by now: the next try finds it there.
        lock.release()
    raise Timeout(str(place))


@contextmanager
def _opened(place: Path) -> Iterator[int | None]:
    """Hold a file open, so that no later one has its number; None where there is none."""
    try:
        file = os.open(place, os.O_RDONLY)
    except FileNotFoundError:
        yield None
        return
    try:
        yield file
    finally:
        os.close(file)


def _is_still(place: Path, file: int) -> bool:
    """Return whether a name stands for a file that was opened before."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(place))
    except FileNotFoundError:
        return False
