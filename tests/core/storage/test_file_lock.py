"""The lock of a history: one holder at a time, and no file left behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from octavo.core.storage import file_lock
from octavo.core.storage.file_lock import held, lock_file

CONTENDER = """
import sys
from pathlib import Path
from filelock import Timeout
from octavo.core.storage.file_lock import held

# Each who holds the lock counts up: two at once lose a count, or find the other's mark.
path, rounds = Path(sys.argv[1]), int(sys.argv[2])
mark, counter = path.with_suffix(".mark"), path.with_suffix(".count")
done = 0
while done < rounds:
    try:
        with held(path):
            mark.touch(exist_ok=False)
            counter.write_text(str(int(counter.read_text()) + 1))
            mark.unlink()
            done += 1
    except Timeout:
        continue
"""


def test_nobody_else_holds_it_and_it_is_gone_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "h.db"
    with held(path):
        assert lock_file(path).exists()
        with pytest.raises(Timeout), held(path):
            pass
    assert list(tmp_path.iterdir()) == []
    with held(path):
        pass


def test_processes_in_a_race_hold_it_one_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "h.db"
    path.with_suffix(".count").write_text("0")
    command = [sys.executable, "-c", CONTENDER, str(path), "150"]
    racing = [subprocess.Popen(command) for _ in range(3)]
    assert [process.wait(120) for process in racing] == [0, 0, 0]
    assert path.with_suffix(".count").read_text() == "450"
    assert not lock_file(path).exists()


def test_a_lock_of_a_file_that_was_deleted_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another holder deletes the file between the look at it and the lock."""
    path = tmp_path / "h.db"
    place = lock_file(path)
    place.touch()
    tried = []

    class Slow(FileLock):
        def acquire(self, *args, **named):
            if not tried:
                tried.append(1)
                place.unlink()
                place.touch()
            return super().acquire(*args, **named)

    monkeypatch.setattr(file_lock, "FileLock", Slow)
    with held(path), pytest.raises(Timeout):
        FileLock(place, timeout=0).acquire()
    assert tried
    assert not place.exists()


def test_a_lock_file_that_a_killed_process_left_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "h.db"
    lock_file(path).touch()
    with held(path):
        pass
    assert not lock_file(path).exists()
