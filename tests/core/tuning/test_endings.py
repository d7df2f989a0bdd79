"""How runs end: by signals in any phase, by failing callbacks, by a lost database;
nothing is lost."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy

import octavo
from octavo.core.errors import ConfigError, EvaluationError, StoreError
from octavo.core.storage import server_lock
from octavo.core.storage.history import StudyHistory, read_history
from octavo.core.tuning.progress import Progress
from octavo.core.values.recipe import Recipe
from octavo.core.values.trial import Trial
from tests import tiny

ROOT = Path(__file__).parents[3]

# Evaluations: the float model twice, trials 1 to 4, then the winner, saved and loaded.
CHILD = """
import sys, time; sys.path.insert(0, sys.argv[1])
from tests import tiny
import octavo
evaluated, hangs = 0, int(sys.argv[3])
def score(model):
    global evaluated
    evaluated += 1
    print("evaluating", evaluated, flush=True)
    if evaluated == hangs:
        time.sleep(60)
    return tiny.accuracy(model)
def held_out(model):
    print("holding out", flush=True)
    if evaluated == -hangs:
        time.sleep(60)
    return tiny.accuracy(model)
r = octavo.autotune(
    tiny.chain(), score, tiny.calibration(), strategy="exhaustive", max_trials=4,
    storage=sys.argv[2], minimise="size",
    host=tiny.host(), holdout_fn=held_out if hangs < 0 else None, accuracy={"guard": False},
)
confirmed = r.confirmed is not None
print("result", r.interrupted, r.goal_met, r.best.number, len(r.trials), confirmed, flush=True)
print("reason", r.reason, flush=True)
print("trials", *[t.recipe.digest for t in r.trials], *[t.state for t in r.trials], flush=True)
"""


def child(storage: object, hangs: int) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-c",
        textwrap.dedent(CHILD),
        str(ROOT),
        str(storage),
        str(hangs),
    ]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def ended_in(
    storage: object, evaluation: int, sent: signal.Signals, line: str = ""
) -> list[str]:
    """Send a signal in the middle of an evaluation; return the lines of the child's output."""
    run = child(storage, evaluation)
    assert run.stdout is not None
    lines = []
    for found in run.stdout:
        lines.append(found.strip())
        if lines[-1] == (line or f"evaluating {evaluation}"):
            time.sleep(0.2)
            run.send_signal(sent)
            break
    return lines + [rest.strip() for rest in run.communicate()[0].splitlines()]


def whole(storage: object) -> list[str]:
    return [line.strip() for line in child(storage, 0).communicate()[0].splitlines()]


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_trial_interrupted_twice_is_run_like_any_other(
    tmp_path: Path, sent: signal.Signals
) -> None:
    expected = whole(tmp_path / "whole.db")[-1]
    first = ended_in(tmp_path / "h.db", 4, sent)
    assert "result True True 1 1 False" in first
    # The float model is scored again, trial 1 is not: the second evaluation is trial 2 once more.
    again = ended_in(tmp_path / "h.db", 2, sent)
    assert "result True True 1 1 False" in again
    last = whole(tmp_path / "h.db")
    assert last[-1] == expected
    assert "failed" not in last[-1]


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_the_winner_is_kept_if_its_confirmation_is_interrupted(
    tmp_path: Path, sent: signal.Signals
) -> None:
    lines = ended_in(tmp_path / "h.db", 7, sent)
    (result,) = (line.split()[1:] for line in lines if line.startswith("result"))
    assert (result[0], result[1], result[3], result[4]) == (
        "True",
        "True",
        "4",
        "False",
    )
    assert any("was not confirmed" in line for line in lines)
    # What is missing is the confirmation alone, after a look at the float model.
    rest = whole(tmp_path / "h.db")
    assert [line for line in rest if line.startswith("evaluating")] == [
        "evaluating 1",
        "evaluating 2",
    ]
    assert f"result False True {result[2]} 4 True" in rest


@pytest.mark.parametrize("sent", [signal.SIGHUP])
def test_the_winner_is_kept_if_its_holdout_is_interrupted(
    tmp_path: Path, sent: signal.Signals
) -> None:
    run = child(tmp_path / "h.db", -7)
    assert run.stdout is not None
    seen = 0
    for line in run.stdout:
        seen += line.strip() == "evaluating 7"
        if seen and line.strip() == "holding out":
            time.sleep(0.2)
            run.send_signal(sent)
            break
    out, _ = run.communicate()
    assert "result True True" in out


def test_the_command_line_saves_what_it_has(tmp_path: Path) -> None:
    pytest.importorskip("typer")
    (tmp_path / "job.py").write_text(
        textwrap.dedent("""
            import time
            from sklearn.datasets import load_digits
            from sklearn.neural_network import MLPClassifier
            import numpy as np
            x, y = load_digits(return_X_y=True)
            x = (x / 16).astype(np.float32)
            net = MLPClassifier((16,), max_iter=30, random_state=0).fit(x, y)
            batches = [x[:64]]
            seen = 0
            def score(model):
                global seen
                seen += 1
                print("evaluating", seen, flush=True)
                if seen == 5:
                    time.sleep(60)
                return float((np.asarray(model(x)).reshape(len(x), -1).argmax(1) == y).mean())
        """)
    )
    command = [
        sys.executable,
        "-m",
        "octavo",
        "tune",
        "job:net",
        "--evaluate",
        "job:score",
        "--metric",
        "accuracy",
        "--calibration",
        "job:batches",
        "--strategy",
        "basic",
        "--max-trials",
        "2",
        "--minimise",
        "size",
        "-o",
        str(tmp_path / "out"),
        "--no-report",
    ]
    run = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    assert run.stdout is not None
    for line in run.stdout:
        # Two of the float model, two trials at most: the confirmation, or a trial.
        if line.strip() == "evaluating 5":
            time.sleep(0.2)
            run.send_signal(signal.SIGTERM)
            break
    _, errors = run.communicate()
    assert run.returncode == 130, errors
    assert (tmp_path / "out" / "octavo.json").is_file()


class Raises(Progress):
    """Fails in every method, as a callback whose dashboard is down does."""

    def _fail(self, *arguments: object) -> None:
        raise ConnectionError("the dashboard is down")

    started = trying = finished = note = ended = _fail  # type: ignore[assignment]


def tune(storage: object, score: Any = tiny.accuracy, **settings: Any) -> octavo.Result:
    settings = {
        "strategy": "basic",
        "max_trials": 2,
        "minimise": "size",
        "host": tiny.host(),
        **settings,
    }
    return octavo.autotune(
        tiny.chain(), score, tiny.calibration(), storage=storage, **settings
    )


def test_a_callback_that_raises_costs_a_warning(tmp_path: Path) -> None:
    class Seen(Progress):
        reasons: Sequence[str] = ()

        def ended(self, reason: str) -> None:
            self.reasons = (*self.reasons, reason)

    seen = Seen()
    with pytest.warns(
        UserWarning,
        match=r"callback Raises\.\w+ raised ConnectionError: the dashboard is down",
    ) as told:
        result = tune(tmp_path / "h.db", callbacks=(Raises(), seen))
    assert result.goal_met
    assert len(seen.reasons) == 1
    methods = [str(w.message).split()[1] for w in told if "dashboard" in str(w.message)]
    # Once for each method, however often that is called.
    assert sorted(methods) == sorted(set(methods))
    assert {
        "Raises.started",
        "Raises.trying",
        "Raises.finished",
        "Raises.ended",
    } <= set(methods)


def test_what_can_be_known_before_is_said_before(tmp_path: Path) -> None:
    def forbidden(model: Any) -> float:
        raise AssertionError("the score function was called")

    with pytest.raises(ConfigError, match="there is no folder"):
        tune(
            tmp_path / "h.db",
            forbidden,
            sensitivities=tmp_path / "absent" / "folder" / "s.json",
        )
    (tmp_path / "s.tiny.json").write_text(
        '{"schema": 1, "of": "another", "scores": {}}'
    )
    with pytest.raises(StoreError, match="another model"):
        tune(tmp_path / "h.db", forbidden, sensitivities=tmp_path / "s.json")

    def broken(model: Any) -> float:
        raise OSError("no held-out data here")

    with pytest.raises(EvaluationError, match="no held-out data here"):
        tune(tmp_path / "other.db", holdout_fn=broken)
    assert [t.number for t in read_history(tmp_path / "other.db")[1]] in ([], [0])


def test_an_output_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    from octavo.core.results.result import check_target

    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="no writable folder"):
        check_target(tmp_path / "file" / "out")
    assert check_target(tmp_path / "a" / "b" / "out") == tmp_path / "a" / "b" / "out"


def sessions(url: str, condition: str) -> list[Any]:
    engine = sqlalchemy.create_engine(url)
    with engine.connect() as connection:
        query = (
            "SELECT pid, state FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND "
            f"backend_type = 'client backend' AND {condition}"
        )
        found = list(connection.execute(sqlalchemy.text(query)))
    engine.dispose()
    return found


def end_sessions(url: str) -> None:
    engine = sqlalchemy.create_engine(url)
    with engine.connect() as connection:
        connection.execute(
            sqlalchemy.text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> "
                "pg_backend_pid() AND backend_type = 'client backend'"
            )
        )
    engine.dispose()


def test_a_run_on_postgresql_leaves_no_transaction_open(postgres: str) -> None:
    open_ones = []

    def score(model: Any) -> float:
        open_ones.extend(sessions(postgres, "state LIKE 'idle in transaction%'"))
        return tiny.accuracy(model)

    assert tune(postgres, score, study="open").goal_met
    assert open_ones == []


def test_a_run_goes_on_after_the_server_ended_its_connections(postgres: str) -> None:
    calls = []

    def score(model: Any) -> float:
        calls.append(1)
        end_sessions(postgres)
        return tiny.accuracy(model)

    result = tune(postgres, score, study="ended")
    assert result.goal_met
    assert [t.number for t in read_history(postgres, "ended")[1]] == [
        0,
        *(t.number for t in result.trials),
    ]


def test_another_run_that_took_the_study_meanwhile_is_told(
    postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_lock, "ALIVE_SECONDS", 3600.0)
    other: list[StudyHistory] = []

    def begin(history: StudyHistory) -> str:
        return history.begin(1, Recipe({}, (), "tiny"))

    first = StudyHistory(postgres, name="taken", fingerprint={})
    end_sessions(postgres)
    time.sleep(0.3)
    other.append(StudyHistory(postgres, name="taken", fingerprint={}))
    with pytest.raises(StoreError, match="another run took the study"):
        begin(first)
    first.close()
    assert begin(other[0]) == ""
    other[0].close()


def test_the_lock_is_taken_again_before_anybody_else_does(
    postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_lock, "ALIVE_SECONDS", 0.1)
    first = StudyHistory(postgres, name="alive", fingerprint={})
    end_sessions(postgres)
    time.sleep(1.0)
    with pytest.raises(StoreError, match="in use"):
        StudyHistory(postgres, name="alive", fingerprint={})
    first.close()


def test_a_server_that_is_gone_is_a_typed_error(postgres: str) -> None:
    history = StudyHistory(postgres, name="gone", fingerprint={})
    history._storage.engine.dispose()
    # As if the server had moved away: every new connection is refused.
    history._storage.engine.pool._creator = lambda *a, **k: (_ for _ in ()).throw(
        OSError("connection refused")
    )  # type: ignore[attr-defined]
    assert history._lock is not None
    history._lock._drop()
    with pytest.raises(StoreError, match="cannot be written or read"):
        history.begin(1, Recipe({}, (), "tiny"))
    history.close()


STARTS = """
import sys
from octavo.core.storage.history import StudyHistory
print("ready", flush=True)
sys.stdin.readline()
StudyHistory(sys.argv[1], name=sys.argv[2], fingerprint={}).close()
print("opened", flush=True)
"""


def test_first_runs_at_once_on_a_fresh_database_all_open(postgres: str) -> None:
    engine = sqlalchemy.create_engine(postgres, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text("CREATE DATABASE fresh"))
    engine.dispose()
    fresh = postgres.rsplit("/", 1)[0] + "/fresh"
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", STARTS, fresh, f"study {i}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(4)
    ]
    for run in runs:
        assert run.stdout is not None
        assert run.stdout.readline() == "ready\n"
    for run in runs:
        assert run.stdin is not None
        run.stdin.write("\n")
        run.stdin.flush()
    with ThreadPoolExecutor(4) as pool:
        ended = list(pool.map(lambda run: run.communicate(timeout=120), runs))
    assert [out for out, _ in ended] == ["opened\n"] * 4, [
        errors[-500:] for _, errors in ended
    ]


def test_trials_carry_no_password(tmp_path: Path) -> None:
    def score(model: Any) -> float:
        if not isinstance(model, tiny.Chain) and model.recipe.schemes:
            raise OSError("cannot reach mysql://reader:hunter2hunter2@host/labels")
        return tiny.accuracy(model)

    result = tune(tmp_path / "h.db", score, max_trials=1)
    (trial,) = result.trials
    assert isinstance(trial, Trial)
    assert "mysql://reader:***@host/labels" in trial.error
    assert "hunter2" not in trial.error
