"""The durable record: SQLite and PostgreSQL, killed processes, foreign and broken stores."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from octavo.core.errors import StoreError
from octavo.core.storage.history import StudyHistory, read_history
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import OpScheme, QuantSpec
from octavo.core.values.trial import Measurement, Trial

PRINT = {"model": "a", "data": "b", "space": "c"}


def recipe(name: str = "layer") -> Recipe:
    return Recipe(
        {
            name: OpScheme(
                mode="weight_only",
                weight=QuantSpec(dtype="int8", granularity="channel"),
            )
        },
        (),
        "tiny",
    )


def trial(number: int) -> Trial:
    size = Measurement(10.0 * number, 9.0, 11.0, "bytes", 0.3)
    return Trial(
        number,
        recipe(f"layer.{number}"),
        metrics={"score": 0.9},
        passed=True,
        margin=0.5,
        objectives={"size": size},
    )


def test_trials_come_back_equal(storage: str, request: pytest.FixtureRequest) -> None:
    name = request.node.name
    history = StudyHistory(
        storage, name=name, fingerprint=PRINT, directions=("maximize", "minimize")
    )
    failed = Trial(2, recipe("layer.2"), "failed", error="Traceback: out of memory")
    for t in (trial(1), failed):
        history.begin(t.number, t.recipe)
        history.finish(t)
    history.close()
    again = StudyHistory(storage, name=name, fingerprint=PRINT)
    assert again.trials == (trial(1), failed)
    assert again.trials[1].margin == float("-inf")
    again.close()
    assert read_history(storage, name)[1] == (trial(1), failed)


def test_a_dashboard_sees_metric_and_objectives(tmp_path: Path) -> None:
    import optuna

    history = StudyHistory(
        tmp_path / "h.db", fingerprint=PRINT, directions=("maximize", "minimize")
    )
    history.begin(1, trial(1).recipe)
    history.finish(trial(1))
    history.close()
    study = optuna.load_study(
        study_name="octavo", storage=f"sqlite:///{tmp_path / 'h.db'}"
    )
    assert study.trials[0].values == [0.9, 10.0]


@pytest.mark.parametrize("key", sorted(PRINT))
def test_a_store_of_another_run_is_refused(
    storage: str, request: pytest.FixtureRequest, key: str
) -> None:
    name = request.node.name
    StudyHistory(storage, name=name, fingerprint=PRINT).close()
    with pytest.raises(StoreError, match=f"another {key}"):
        StudyHistory(storage, name=name, fingerprint={**PRINT, key: "other"})


def test_a_second_run_on_a_store_in_use_is_refused(
    storage: str, request: pytest.FixtureRequest
) -> None:
    name = request.node.name
    first = StudyHistory(storage, name=name, fingerprint=PRINT)
    with pytest.raises(StoreError, match="in use"):
        StudyHistory(storage, name=name, fingerprint=PRINT)
    first.close()
    StudyHistory(storage, name=name, fingerprint=PRINT).close()


def test_trials_are_not_continued_unasked(tmp_path: Path) -> None:
    history = StudyHistory(tmp_path / "h.db", fingerprint=PRINT)
    history.begin(1, trial(1).recipe)
    history.finish(trial(1))
    history.close()
    with pytest.raises(StoreError, match="already holds 1 trials"):
        StudyHistory(tmp_path / "h.db", fingerprint=PRINT, resume=False)


def test_a_newer_store_is_refused(tmp_path: Path) -> None:
    history = StudyHistory(tmp_path / "h.db", fingerprint=PRINT)
    history._storage.set_study_user_attr(history._study, "octavo:schema", 99)
    history.close()
    with pytest.raises(StoreError, match="newer octavo"):
        StudyHistory(tmp_path / "h.db", fingerprint=PRINT)


def test_a_study_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    import optuna

    optuna.create_study(study_name="octavo", storage=f"sqlite:///{tmp_path / 'h.db'}")
    with pytest.raises(StoreError, match="not made by octavo"):
        StudyHistory(tmp_path / "h.db", fingerprint=PRINT)


@pytest.mark.parametrize("damage", ["garbage", "truncated", "overwritten"])
def test_a_corrupt_store_is_set_aside_and_never_overwritten(
    tmp_path: Path, damage: str
) -> None:
    path = tmp_path / "h.db"
    history = StudyHistory(path, fingerprint=PRINT)
    for n in range(1, 30):
        history.begin(n, trial(n).recipe)
        history.finish(trial(n))
    history.close()
    whole = path.read_bytes()
    broken = {
        "garbage": b"this is no database" * 100,
        "truncated": whole[: len(whole) // 2],
        "overwritten": whole[:20000] + b"\xff" * 20000 + whole[40000:],
    }[damage]
    path.write_bytes(broken)
    with pytest.raises(StoreError, match="set aside"):
        StudyHistory(path, fingerprint=PRINT)
    (aside,) = tmp_path.glob("h.db.corrupt-*")
    assert aside.read_bytes() == broken
    StudyHistory(path, fingerprint=PRINT).close()


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_store_fails_at_the_start(tmp_path: Path) -> None:
    path = tmp_path / "h.db"
    StudyHistory(path, fingerprint=PRINT).close()
    path.chmod(0o444)
    with pytest.raises(StoreError, match="read-only"):
        StudyHistory(path, fingerprint=PRINT)


def test_a_place_that_cannot_be_written_fails_at_the_start() -> None:
    with pytest.raises(StoreError, match="cannot be written"):
        StudyHistory("/proc/octavo/h.db", fingerprint=PRINT)


def test_a_folder_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is a folder"):
        StudyHistory(tmp_path, fingerprint=PRINT)


def test_a_full_disk_stops_with_a_typed_error_and_keeps_what_was_there(
    tmp_path: Path,
) -> None:
    path = tmp_path / "h.db"
    history = StudyHistory(path, fingerprint=PRINT)
    history.begin(1, trial(1).recipe)
    history.finish(trial(1))
    # SQLite's own page limit answers as a full disk does: SQLITE_FULL.
    import sqlalchemy

    @sqlalchemy.event.listens_for(history._storage.engine, "connect")
    def limit(connection: sqlite3.Connection, _: object) -> None:
        connection.execute(
            f"PRAGMA max_page_count = {connection.execute('PRAGMA page_count').fetchone()[0]}"
        )

    history._storage.engine.dispose()

    def fill() -> None:
        for n in range(2, 400):
            history.begin(n, recipe("x" * 3000 + str(n)))
            history.finish(
                Trial(n, recipe("x" * 3000 + str(n)), "failed", error="e" * 5000)
            )

    with pytest.raises(StoreError, match="cannot be written"):
        fill()
    history.close()
    assert read_history(path)[1][0] == trial(1)


CHILD = """
import os, signal, sys
sys.path.insert(0, {root!r})
from tests.core.storage.test_history import PRINT, recipe, trial
from octavo.core.storage.history import StudyHistory
history = StudyHistory({storage!r}, name={name!r}, fingerprint=PRINT)
done = [t.number for t in history.trials]
for n in range(len(done) + 1, 50):
    died = history.begin(n, trial(n).recipe)
    print("began", n, died, flush=True)
    if n == {stop}:
        if {crash}:
            os.kill(os.getpid(), signal.SIGSEGV)
        import time
        time.sleep(60)
    history.finish(trial(n))
    print("finished", n, flush=True)
"""


def _ended_at(
    stop: int, storage: str, name: str, sent: signal.Signals | None = signal.SIGKILL
) -> list[str]:
    """Run the child until it began trial ``stop``, then end it (None: it crashes by itself);
    returns its lines."""
    root = str(Path(__file__).parents[3])
    code = textwrap.dedent(CHILD).format(
        root=root, storage=storage, name=name, stop=stop, crash=sent is None
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    )
    lines: list[str] = []
    assert child.stdout is not None
    for line in child.stdout:
        lines.append(line.strip())
        if line.startswith(f"began {stop} "):
            if sent is not None:
                child.send_signal(sent)
            break
    child.wait()
    child.stdout.close()
    return lines


def test_sigkill_loses_no_finished_trial_and_repeats_none(
    storage: str, request: pytest.FixtureRequest
) -> None:
    name = request.node.name
    lines = _ended_at(3, storage, name)
    assert lines[-2:] == ["finished 2", "began 3"]
    assert [t.number for t in read_history(storage, name)[1]] == [1, 2]
    lines = _ended_at(4, storage, name)
    assert lines[0] == "began 3"
    assert [t.number for t in read_history(storage, name)[1]] == [1, 2, 3]
    # Preempted in trial 4 three times: no fault of its recipe, which is tried again all the same.
    for _ in range(2):
        _ended_at(4, storage, name)
    history = StudyHistory(storage, name=name, fingerprint=PRINT)
    assert "run again" in " ".join(history.notes)
    assert history.begin(4, trial(4).recipe) == ""
    history.close()


def test_a_recipe_in_which_the_process_crashed_twice_is_not_tried_again(
    storage: str, request: pytest.FixtureRequest
) -> None:
    name = request.node.name
    for _ in range(2):
        assert _ended_at(4, storage, name, None)[-1] == "began 4"
    _ended_at(4, storage, name)
    history = StudyHistory(storage, name=name, fingerprint=PRINT)
    said = history.begin(4, trial(4).recipe)
    assert (
        "crashed by itself in this recipe 2 times before (Segmentation fault, Segmentation fault)"
        in said
    )
    assert history.begin(5, trial(5).recipe) == ""
    history.close()
    # What an earlier start learnt is kept, whatever became of the fault handler's file since.
    again = StudyHistory(storage, name=name, fingerprint=PRINT)
    assert "2 times" in again.begin(4, trial(4).recipe)
    again.close()


def test_an_interrupted_trial_is_no_fault_of_its_recipe(
    storage: str, request: pytest.FixtureRequest
) -> None:
    for _ in range(3):
        history = StudyHistory(storage, name=request.node.name, fingerprint=PRINT)
        assert history.begin(1, trial(1).recipe) == ""
        assert history.notes == ()
        history.interrupt(1)
        history.close()


def test_reading_a_missing_store_says_so(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="does not exist"):
        read_history(tmp_path / "none.db")
    (tmp_path / "bad.db").write_bytes(b"x" * 5000)
    with pytest.raises(StoreError, match="no readable history"):
        read_history(tmp_path / "bad.db")
