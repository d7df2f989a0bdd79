"""autotune from end to end, on a third-party backend that needs no framework."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import octavo
from octavo.core.errors import (
    ConfigError,
    DataError,
    EvaluationError,
    ModelError,
    NonFiniteWeight,
    SchemeError,
    StoreError,
    UnknownPart,
)
from octavo.core.storage.history import read_history
from tests import tiny


@pytest.fixture
def tune(tmp_path: Path) -> Callable[..., octavo.Result]:
    def run(
        eval_fn: Callable[[Any], Any] = tiny.accuracy,
        model: Any = None,
        **settings: Any,
    ) -> octavo.Result:
        settings = {
            "strategy": "basic",
            "storage": tmp_path / "history.db",
            "minimise": "size",
            "host": tiny.host(),
            **settings,
        }
        calibration = settings.pop("calibration", tiny.calibration())
        return octavo.autotune(
            tiny.chain() if model is None else model, eval_fn, calibration, **settings
        )

    return run


def test_the_main_job(tune: Callable[..., octavo.Result], tmp_path: Path) -> None:
    result = tune(minimise=["size", "latency"])
    assert result.goal_met
    assert result.confirmed == result.best.metrics
    assert len(result.best.recipe) == 4
    assert all(
        line.honoured and line.realization == "kernel"
        for line in result.ledger.values()
    )
    assert (
        result.best.objectives["size"].value < result.baseline.objectives["size"].value
    )
    assert result.best in result.pareto
    assert tiny.accuracy(result.model) == result.best.metrics["score"]
    loaded = octavo.core.results.result.load_candidate(
        result.save(tmp_path / "out"), host=tiny.host()
    )
    x, _ = tiny.digits()
    np.testing.assert_array_equal(loaded.native(x), result.model(x))
    assert [t.number for t in read_history(result.storage)[1]] == [
        0,
        *(t.number for t in result.trials),
    ]


def test_two_processes_find_the_same_recipes(
    tune: Callable[..., octavo.Result], tmp_path: Path
) -> None:
    code = textwrap.dedent("""
        import sys; sys.path.insert(0, sys.argv[1])
        from tests import tiny
        import octavo
        r = octavo.autotune(
            tiny.chain(), tiny.accuracy, tiny.calibration(),
            strategy={"kind": "bayesian", "over": "op"}, max_trials=6,
            storage=sys.argv[2], minimise="size", host=tiny.host(),
        )
        print(*[t.recipe.digest for t in r.trials])
    """)
    root = str(Path(__file__).parents[3])
    runs = []
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code, root, str(tmp_path / f"{seed}.db")],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
        runs.append(done.stdout.split())
    assert len(runs[0]) == 6
    assert runs[0] == runs[1]


def test_a_missed_goal_comes_back_with_the_closest_and_the_reason(
    tune: Callable[..., octavo.Result],
) -> None:
    def harsh(model: Any) -> float:
        x, _ = tiny.digits()
        return -float(np.abs(model(x) - tiny.chain()(x)).max()) - 1e-9

    result = tune(harsh, tolerance=0.0, max_trials=5)
    assert not result.goal_met
    assert "no trial reached the goal" in result.reason
    assert result.best.number > 0
    assert result.best.margin == max(t.margin for t in result.trials)


def test_what_evaluate_raises_is_a_failed_trial(
    tune: Callable[..., octavo.Result],
) -> None:
    calls = []

    def flaky(model: Any) -> float:
        calls.append(1)
        # The first trial: two baselines and the broken model come before it.
        if len(calls) == 4:
            raise RuntimeError("the validation set is on a share that went away")
        return tiny.accuracy(model)

    result = tune(flaky)
    assert result.goal_met
    first = result.trials[0]
    assert first.state == "failed"
    assert "went away" in first.error
    assert "Traceback" in first.error


@pytest.mark.parametrize(
    "answer", [None, "0.9", True, (0.9,), float("nan"), float("inf"), np.zeros(3)]
)
def test_what_is_no_score_is_refused_on_the_float_model(
    tune: Callable[..., octavo.Result], answer: object
) -> None:
    with pytest.raises(EvaluationError, match="score"):
        tune(lambda model: answer)


def test_no_trial_completes(tune: Callable[..., octavo.Result]) -> None:
    calls = []

    def broken(model: Any) -> float:
        calls.append(1)
        return 0.9 if len(calls) <= 2 else float("nan")

    result = tune(broken, max_trials=3)
    assert not result.goal_met
    assert "no trial was completed" in result.reason
    assert "nan" in result.reason


def test_errors_come_before_long_work(
    tune: Callable[..., octavo.Result], tmp_path: Path
) -> None:
    def forbidden(model: Any) -> float:
        raise AssertionError("the score function was called")

    with pytest.raises(ConfigError, match="'strategy'"):
        tune(forbidden, strateg="basic")
    with pytest.raises(UnknownPart, match="'bayesian'"):
        tune(forbidden, strategy="bayes")
    with pytest.raises(
        ConfigError, match=r"'layer\.O', which matches nothing; did you mean"
    ):
        tune(forbidden, rules=[{"ops": ["layer.O"], "keep": "float"}])
    with pytest.raises(ConfigError, match="nothing that tiny can carry out"):
        tune(forbidden, rules=[{"weight": {"dtype": "int4"}}])
    with pytest.raises(DataError, match="empty"):
        tune(forbidden, calibration=[])
    with pytest.raises(DataError, match=r"expected shape \(any, 64\)"):
        tune(forbidden, calibration=[np.zeros((2, 3), np.float32)])
    with pytest.raises(ModelError, match="no backend takes"):
        tune(forbidden, model=object())
    with pytest.raises(ModelError, match="does not exist"):
        tune(forbidden, model=tmp_path / "none.onnx")
    with pytest.raises(EvaluationError, match="callable"):
        tune(0.9)
    with pytest.raises(StoreError):
        tune(forbidden, storage="/proc/octavo/history.db")


def test_a_bad_weight_is_refused_or_left_in_float(
    tune: Callable[..., octavo.Result],
) -> None:
    calls = []
    model = tiny.chain()
    model.weights[1][3, 2] = np.nan
    with pytest.raises(NonFiniteWeight, match=r"layer\.1\.weight"):
        tune(lambda m: calls.append(1) or 0.5, model=model)
    assert not calls


def test_a_score_function_that_trains_is_found_out(
    tune: Callable[..., octavo.Result],
) -> None:
    model = tiny.chain()

    def trains(candidate: Any) -> float:
        model.weights[0] *= 0.99
        return 0.9

    with pytest.raises(EvaluationError, match="changes the model"):
        tune(trains, model=model)


def test_a_file_larger_than_memory_is_refused_before_it_is_read(tmp_path: Path) -> None:
    from octavo.core.opening.opening import check_memory

    path = tmp_path / "large.onnx"
    for name in (path, tmp_path / "large.onnx.data"):
        with name.open("wb") as file:
            file.truncate(2**20)
    check_memory(path, available=3 * 2**20)
    with pytest.raises(ModelError, match="of memory are free"):
        check_memory(path, available=2**21)


def test_noise_beyond_the_tolerance_is_reported(
    tune: Callable[..., octavo.Result],
) -> None:
    scores = iter([0.9, 0.8, *[0.9] * 50])
    result = tune(lambda model: next(scores), max_trials=1)
    assert "varied by 0.1" in " ".join(result.remarks)


def test_a_relative_goal_at_zero_is_refused(tune: Callable[..., octavo.Result]) -> None:
    with pytest.raises(ConfigError, match="absolute"):
        tune(lambda model: 0.0)


def test_lower_is_better(tune: Callable[..., octavo.Result]) -> None:
    result = tune(
        lambda model: 1 - tiny.accuracy(model),
        higher_is_better=False,
        tolerance=0.05,
        mode="absolute",
        metric="error",
    )
    assert result.goal_met
    assert "error <=" in result.goal
    missed = tune(
        lambda model: 10.0 if not model.recipe.schemes else 30.0,
        higher_is_better=False,
        study="other",
        max_trials=2,
    )
    assert not missed.goal_met


def test_nothing_to_quantize_is_an_explicit_result(
    tune: Callable[..., octavo.Result],
) -> None:
    result = tune(rules=[{"types": ["linear"], "keep": "float"}])
    assert "nothing to quantize" in " ".join(result.remarks)
    assert not result.goal_met
    assert "nothing to quantize" in result.reason
    assert result.trials == ()


def test_the_default_objective_and_stop(tune: Callable[..., octavo.Result]) -> None:
    result = tune(stop="goal")
    assert result.trials[-1].passed
    assert not any(t.passed for t in result.trials[:-1])
    assert "reached the goal" in result.reason


def test_a_finished_run_is_answered_from_its_history(
    tune: Callable[..., octavo.Result],
) -> None:
    calls = []

    def counted(model: Any) -> float:
        calls.append(1)
        return tiny.accuracy(model)

    first = tune(counted)
    before = len(calls)
    again = tune(counted)
    assert again.trials == first.trials
    # The float model, and the winner after loading; nothing else.
    assert len(calls) == before + 2
    with pytest.raises(StoreError, match="already holds"):
        tune(counted, resume=False)
    with pytest.raises(StoreError, match="another data"):
        tune(counted, calibration=tiny.calibration()[:1])
    other = tiny.chain()
    other.weights[0][0, 0] += 1
    with pytest.raises(StoreError, match="another model"):
        tune(counted, model=other)


def test_calibration_runs_once_and_weights_are_quantized_once(
    tune: Callable[..., octavo.Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    from octavo.core.tuning import ground

    made = []
    real = ground.Realizer

    def recorded(*arguments: Any, **named: Any) -> Any:
        made.append(real(*arguments, **named))
        return made[-1]

    monkeypatch.setattr(ground, "Realizer", recorded)
    result = tune(strategy="exhaustive", max_trials=30)
    (realizer,) = made
    assert len(result.trials) == 30
    assert realizer.observe_passes == 1
    assert realizer.weights_quantized <= 4 * 2  # four weights, two specs


CHILD = """
import sys, time; sys.path.insert(0, sys.argv[1])
from tests import tiny
import octavo
evaluated = 0
def score(model):
    global evaluated
    evaluated += 1
    print("evaluating", evaluated, flush=True)
    if sys.argv[3] == "hang" and evaluated == 6:
        time.sleep(60)
    return tiny.accuracy(model)
r = octavo.autotune(
    tiny.chain(), score, tiny.calibration(), strategy="exhaustive", max_trials=7,
    storage=sys.argv[2], minimise="size", host=tiny.host(), accuracy={"guard": False},
)
print("done", r.interrupted, r.goal_met, *[t.recipe.digest for t in r.trials], flush=True)
"""


def _child(storage: Path, mode: str) -> subprocess.Popen[str]:
    root = str(Path(__file__).parents[3])
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CHILD), root, str(storage), mode],
        stdout=subprocess.PIPE,
        text=True,
    )


def _until(child: subprocess.Popen[str], line: str) -> None:
    assert child.stdout is not None
    for found in child.stdout:
        if found.strip() == line:
            return
    raise AssertionError(f"the child ended without saying {line!r}")


def test_resume_after_sigkill_repeats_nothing(tmp_path: Path) -> None:
    whole = _child(tmp_path / "whole.db", "run").communicate()[0].splitlines()[-1]
    killed = _child(tmp_path / "killed.db", "hang")
    # Two baselines, trials 1 to 3, and in the middle of trial 4.
    _until(killed, "evaluating 6")
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert [t.number for t in read_history(tmp_path / "killed.db")[1]] == [0, 1, 2, 3]
    lines = _child(tmp_path / "killed.db", "run").communicate()[0].splitlines()
    assert lines[-1] == whole
    # The float model once more, trials 4 to 7, and the reloaded winner.
    assert lines[-2] == "evaluating 6"


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_the_best_so_far(tmp_path: Path, sent: signal.Signals) -> None:
    child = _child(tmp_path / "h.db", "hang")
    _until(child, "evaluating 6")
    time.sleep(0.2)
    child.send_signal(sent)
    last = child.communicate()[0].splitlines()[-1].split()
    assert last[:3] == ["done", "True", "True"]
    assert len(last[3:]) == 3


def _dies(model: Any) -> float:
    """Crashes the process that scores a quantized model, as a faulty kernel would."""
    if model.recipe.schemes:
        os.kill(os.getpid(), signal.SIGSEGV)
    return tiny.accuracy(model)


def _hangs(model: Any) -> float:
    if model.recipe.schemes:
        time.sleep(60)
    return tiny.accuracy(model)


def test_a_crash_ends_a_trial_and_not_the_run(
    tune: Callable[..., octavo.Result],
) -> None:
    result = tune(
        _dies,
        executor=None,
        config={"executor": "process", "confirm": False},
        max_trials=2,
    )
    assert [t.state for t in result.trials] == ["failed", "failed"]
    assert "child process died" in result.trials[0].error


@pytest.mark.parametrize("executor", ["inline", "process"])
def test_a_hanging_evaluation_is_ended(
    tune: Callable[..., octavo.Result], executor: str
) -> None:
    result = tune(
        _hangs,
        config={
            "executor": executor,
            "trial_timeout": "8s" if executor == "process" else 0.3,
            "confirm": False,
        },
        max_trials=1,
    )
    assert "time limit" in result.trials[0].error


def test_anything_with_submit_is_an_executor(
    tune: Callable[..., octavo.Result],
) -> None:
    with ThreadPoolExecutor(1) as elsewhere:
        result = tune(executor=elsewhere)
    assert result.goal_met


def test_the_search_keeps_its_time_limit(tune: Callable[..., octavo.Result]) -> None:
    def slow(model: Any) -> float:
        time.sleep(0.2)
        return tiny.accuracy(model)

    result = tune(slow, strategy="exhaustive", timeout=4, max_trials=1000)
    assert "time limit" in result.reason
    assert 1 <= len(result.trials) < 20


def test_quantize_model(tmp_path: Path) -> None:
    host = tiny.host()
    static = octavo.quantize_model(
        tiny.chain(), "int8-static", tiny.calibration(), host=host
    )
    assert {str(line.applied.mode) for line in static.ledger.values()} == {"static"}
    assert tiny.accuracy(static.model) > tiny.accuracy(tiny.chain()) - 0.02
    dynamic = octavo.quantize_model(tiny.chain(), "int8-dynamic", host=host)
    assert {line.applied.mode for line in dynamic.ledger.values()} == {"dynamic"}
    again = octavo.quantize_model(
        tiny.chain(), static.candidate.recipe, tiny.calibration(), host=host
    )
    x, _ = tiny.digits()
    np.testing.assert_array_equal(again.model(x), static.model(x))
    chosen = octavo.quantize_model(
        tiny.chain(),
        {"rules": [{"ops": "layer.0", "keep": "float"}]},
        tiny.calibration(),
        host=host,
    )
    assert "layer.0" not in chosen.ledger
    with pytest.raises(SchemeError, match="It can:"):
        octavo.quantize_model(tiny.chain(), "int4-weight-only", host=host)
    with pytest.raises(ConfigError, match="'int8-static'"):
        octavo.quantize_model(tiny.chain(), "int8-statc", host=host)
    with pytest.raises(DataError, match="needs calibration data"):
        octavo.quantize_model(tiny.chain(), "int8-static", host=host)


def test_saving_replaces_a_result_as_a_whole(
    tune: Callable[..., octavo.Result], tmp_path: Path
) -> None:
    result = tune()
    out = tmp_path / "ünï ö" / "out"
    result.save(out)
    before = json.loads((out / "octavo.json").read_text())
    result.save(out)
    assert json.loads((out / "octavo.json").read_text())["recipe"] == before["recipe"]
    assert sorted(p.name for p in out.parent.iterdir()) == ["out"]
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="no octavo result"):
        result.save(mine)
    assert (mine / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("damage", ["missing", "truncated", "newer", "unknown backend"])
def test_a_damaged_result_is_a_typed_error(
    tune: Callable[..., octavo.Result], tmp_path: Path, damage: str
) -> None:
    out = tune().save(tmp_path / "out")
    path = out / "octavo.json"
    manifest = json.loads(path.read_text())
    match damage:
        case "missing":
            path.unlink()
        case "truncated":
            path.write_text(path.read_text()[:50])
        case "newer":
            path.write_text(json.dumps({**manifest, "format": 99}))
        case _:
            path.write_text(json.dumps({**manifest, "backend": "tinny"}))
    with pytest.raises(octavo.OctavoError):
        octavo.core.results.result.load_candidate(out, host=tiny.host())


def test_a_third_party_distribution_is_found_and_tuned(tmp_path: Path) -> None:
    """The stranger's backend, installed as its own distribution, in a fresh process: found by its
    entry point alone."""
    source = Path(__file__).parents[2] / "thirdparty"
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--no-deps",
            "--no-build-isolation",
            "--target",
            str(tmp_path / "site"),
            str(source),
        ],
        check=True,
        capture_output=True,
    )
    code = textwrap.dedent("""
        import numpy as np, octavo, sys
        from octavo_tiny.model import Chain
        random = np.random.default_rng(0)
        weights = [random.normal(size=shape).astype("f") for shape in ((256, 8), (4, 256))]
        chain = Chain(weights, [np.zeros(256, "f"), np.zeros(4, "f")])
        x = random.normal(size=(64, 8)).astype("f")
        expected = chain(x).argmax(1)
        r = octavo.autotune(
            chain, lambda m: float((m(x).argmax(1) == expected).mean()), [x],
            strategy="basic", tolerance=0.1, minimise="size", storage=sys.argv[1],
        )
        r.save(sys.argv[2])
        loaded = octavo.load(sys.argv[2])
        assert (loaded(x) == r.model(x)).all()
        assert not {"torch", "onnx", "onnxruntime"} & set(sys.modules)
        print(r.goal_met, r.best.recipe.backend, len(r.best.recipe))
    """)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "error::RuntimeWarning",
            "-c",
            code,
            str(tmp_path / "h.db"),
            str(tmp_path / "out"),
        ],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True", "tiny", "2"]
    quiet = subprocess.run(
        [sys.executable, "-c", "from octavo.core.contract.plugins import PluginHost; print('tiny' "
                               "in PluginHost().adapters())"],
        capture_output=True, text=True, env={**environment, "OCTAVO_NO_AUTOLOAD": "1"}, check=True,
    )  # fmt: skip
    assert quiet.stdout.strip() == "False"
