"""Signals that come while the store is written: heard after it, and nothing is left half done."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import sqlalchemy

from octavo.core.storage.history import StudyHistory, read_history
from octavo.core.values.recipe import Recipe
from octavo.core.values.trial import Trial

PRINT = {"model": "a"}


def interrupting(history: StudyHistory, event: str, times: int) -> None:
    """Let real signals come inside SQLAlchemy, so often at its first event of that kind."""
    left = [times]

    def ctrl_c(*_: object) -> None:
        while left[0]:
            left[0] -= 1
            os.kill(os.getpid(), signal.SIGINT)

    place = history._storage.engine
    sqlalchemy.event.listen(place, event, ctrl_c)


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("event", ["before_cursor_execute", "commit", "checkin"])
def test_what_is_written_is_whole(tmp_path: Path, event: str, times: int) -> None:
    path = tmp_path / "h.db"
    history = StudyHistory(path, fingerprint=PRINT)
    trial = Trial(0, Recipe({}), metrics={"score": 0.5})
    interrupting(history, event, times)
    with pytest.raises(KeyboardInterrupt):
        history.begin(0, trial.recipe)
    history.finish(trial)
    interrupting(history, event, times)
    with pytest.raises(KeyboardInterrupt):
        history._record("fact", 1)
    assert history.fact("fact") == 1
    history.close()
    assert read_history(path)[1] == (trial,)


def test_whoever_insists_is_heard_at_once(tmp_path: Path) -> None:
    history = StudyHistory(tmp_path / "h.db", fingerprint=PRINT)
    interrupting(history, "before_cursor_execute", 5)
    began = []
    sqlalchemy.event.listen(
        history._storage.engine, "commit", lambda *_: began.append(1)
    )
    with pytest.raises(KeyboardInterrupt):
        history.begin(0, Recipe({}))
    assert not began
    history.close()


SCRIPT = """
import sys, time
sys.path.insert(0, sys.argv[1])
import octavo
from tests import tiny

def score(model):
    print("scoring", flush=True)
    time.sleep(0.05)
    return tiny.accuracy(model)

class Watch(octavo.Progress):
    def ended(self, reason):
        print("ended", flush=True)

result = octavo.autotune(
    tiny.chain(), score, tiny.calibration(), storage=sys.argv[2], host=tiny.host(),
    minimise=["size"], strategy="random", max_trials=500, callbacks=[Watch()],
)
print("result", result.interrupted, len(result.trials), flush=True)
"""


def test_ctrl_c_again_at_the_end_shows_nothing_of_the_database(tmp_path: Path) -> None:
    path = tmp_path / "h.db"
    here = Path(__file__).parents[3]
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), str(here), str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    try:
        for _ in range(6):
            assert "scoring" in child.stdout.readline()
        child.send_signal(signal.SIGINT)
        while "ended" not in (line := child.stdout.readline()):
            assert line
        # From here on the run ends by itself: saving, closing the store.
        for _ in range(3):
            child.send_signal(signal.SIGINT)
            time.sleep(0.03)
        _, told = child.communicate(timeout=60)
    finally:
        child.kill()
    assert "sqlalchemy" not in told
    assert "Exception ignored" not in told
    # What it was told before is there, and the next run goes on with it.
    assert len(read_history(path)[1]) >= 3
    assert not path.with_name("h.db.lock").exists()
