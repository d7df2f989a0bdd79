"""Runs in octavo's own folder: a bounded number, never one in use, never a file of the user's."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from octavo.core.storage import kept
from octavo.core.storage.file_lock import held
from octavo.core.storage.history import StudyHistory
from octavo.core.storage.kept import kept_runs, tidy
from octavo.core.storage.stores import default_storage

PRINT = {"model": "a"}


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OCTAVO_HOME", str(tmp_path))
    return tmp_path / "runs"


def made(days: float) -> Path:
    """Return a run that was last written so many days ago."""
    path = default_storage()
    StudyHistory(path, fingerprint=PRINT).close()
    written = time.time() - days * 24 * 3600
    os.utime(path, (written, written))
    return path


def test_a_run_leaves_its_history_and_nothing_else(runs: Path) -> None:
    path = default_storage()
    history = StudyHistory(path, fingerprint=PRINT)
    beside = {file.name for file in runs.iterdir()} - {path.name}
    assert beside == {f"{path.name}.lock", f"{path.name}.faults"}
    history.close()
    assert list(runs.iterdir()) == [path]


def test_the_oldest_go_and_those_in_use_and_of_the_user_stay(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "KEPT_RUNS", 3)
    ages = [made(days) for days in (0, 1, 2, 3, 100, 101)]
    own = ages[5].with_name("mine.db")
    ages[5].rename(own)
    in_use = ages[4]
    with held(in_use):
        tidy()
        assert sorted(runs.glob("*.db")) == sorted([*ages[:3], in_use, own])
    tidy()
    assert sorted(runs.iterdir()) == sorted([*ages[:3], own])
    assert [run.path for run in kept_runs()] == [*ages[:3], own]


def test_runs_that_are_too_old_go(runs: Path) -> None:
    new, old = made(1), made(kept.KEPT_DAYS + 1)
    tidy()
    assert list(runs.iterdir()) == [new]
    assert not old.exists()


def test_where_there_is_no_folder_there_is_nothing_to_tidy(runs: Path) -> None:
    tidy()
    assert not runs.exists()
