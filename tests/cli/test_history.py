"""Kept runs are listed and pruned; nothing else is deleted."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from filelock import FileLock

from octavo.core.storage.history import StudyHistory

from .conftest import Command


def keep_run(name: str, days: float) -> Path:
    """Make a history in octavo's folder that was last written some days ago."""
    path = Path(os.environ["OCTAVO_HOME"]) / "runs" / f"{name}.db"
    StudyHistory(path, fingerprint={}).close()
    then = time.time() - days * 86400
    os.utime(path, (then, then))
    return path


def test_kept_runs_are_listed_and_old_ones_pruned(octavo: Command) -> None:
    assert "no runs are kept" in octavo("history").out
    new, old, busy = keep_run("new", 1), keep_run("old", 40), keep_run("busy", 50)
    shown = octavo("history")
    assert all(path.name in shown.out for path in (new, old, busy))
    assert "--prune" in shown.out
    with FileLock(f"{busy}.lock"):
        ended = octavo("history", "--prune", "30d", "--json")
    told = json.loads(ended.out)
    assert ended.code == 0
    assert told["deleted"] == 1
    assert {Path(run["path"]) for run in told["runs"]} == {new, busy}
    assert not old.exists()
    assert f"{busy} is in use" in ended.err


def test_pruning_takes_no_run_and_a_duration(octavo: Command, tuned: Path) -> None:
    assert octavo("history", tuned, "--prune", "0").code == 2
    assert octavo("history", "--prune", "soon").code == 2
    assert tuned.exists()
