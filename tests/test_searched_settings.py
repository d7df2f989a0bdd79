"""A search over settings of backends, whose float model is the baseline, and what comes back."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import octavo
from octavo.core.contract.plugins import PluginHost
from octavo.core.errors import ConfigError, ModelError, StoreError
from octavo.core.opening.backends import as_given, asked_backends
from octavo.core.opening.opening import check_memory
from octavo.core.results.result import load_candidate
from octavo.core.values.trial import Trial
from tests import tiny

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

QUICK = {"strategy": "basic", "minimise": "size", "tolerance": 0.05}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny network as an ONNX file with one product."""
    first = tiny.chain().weights[0]
    weight = onnx.numpy_helper.from_array(first.T.copy(), "w")
    x = onnx.helper.make_tensor_value_info("x", 1, ["n", first.shape[1]])
    y = onnx.helper.make_tensor_value_info("y", 1, ["n", first.shape[0]])
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    graph = onnx.helper.make_graph([node], "net", [x], [y], [weight])
    opset = [onnx.helper.make_opsetid("", 17)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=8)
    found = tmp_path_factory.mktemp("model") / "net.onnx"
    onnx.save(model, found)
    return found


def score(model: Any) -> float:
    x = tiny.digits()[0]
    expected = x @ tiny.chain().weights[0].T
    outputs = np.asarray(model(x))
    return float(1 - np.square(outputs - expected).mean() / np.square(expected).mean())


def tune(path: Path, storage: Path, **settings: Any) -> octavo.Result:
    settings = {**QUICK, "max_trials": 2, **settings}
    x = tiny.digits()[0]
    return octavo.autotune(path, score, [x[:64]], storage=storage, **settings)


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Threads of every session of ONNX Runtime that is started."""
    found: list[int] = []
    real = ort.InferenceSession

    class Recorded(real):  # type: ignore[misc, valid-type]
        def __init__(self, model: Any, sess_options: Any = None, **named: Any) -> None:
            found.append(sess_options.intra_op_num_threads if sess_options else 0)
            super().__init__(model, sess_options, **named)

    monkeypatch.setattr(ort, "InferenceSession", Recorded)
    return found


def test_a_setting_is_searched_confirmed_and_loaded_again(
    path: Path, tmp_path: Path, threads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    from octavo.core.tuning.ending import acceptance

    confirmed: list[Any] = []
    real = acceptance.load_candidate

    def recorded(*given: Any, **named: Any) -> Any:
        threads.clear()
        candidate = real(*given, **named)
        candidate.run((tiny.digits()[0][:2],))
        confirmed.append(list(threads))
        return candidate

    monkeypatch.setattr(acceptance, "load_candidate", recorded)
    result = tune(
        path, tmp_path / "h.db", backends=[{"kind": "onnx", "threads": [1, 3]}]
    )
    tried = [trial.recipe.backend for trial in result.trials]
    assert sorted(tried) == ["onnx(threads=1)", "onnx(threads=3)"]
    assert {trial.recipe.adapter for trial in result.trials} == {"onnx"}
    assert result.baseline.recipe.backend == "onnx(threads=1)"
    assert list(result.floats) == ["onnx(threads=3)"]
    assert result.best_of("onnx") is not None
    assert result.best_of("onnx(threads=3)") in result.trials
    winner = int(result.best.recipe.backend[-2])
    assert result.backend_settings["threads"] == winner
    assert confirmed
    assert set(confirmed[-1]) == {winner}
    folder = result.save(tmp_path / "out")
    manifest = json.loads((folder / "octavo.json").read_text())
    assert manifest["backend"] == "onnx"
    assert manifest["backend_settings"]["threads"] == winner
    threads.clear()
    model = octavo.load(folder)
    assert type(model) is type(result.model)
    model(tiny.digits()[0][:2])
    assert set(threads) == {winner}


def test_a_recipe_of_a_searched_setting_is_carried_out_with_it(
    path: Path, tmp_path: Path
) -> None:
    result = tune(path, tmp_path / "h.db", backends=["numpy(threads=1|2)"])
    recipe = result.trials[-1].recipe
    assert recipe.backend == "numpy(threads=2)"
    again = octavo.quantize_model(path, recipe, [tiny.digits()[0][:64]])
    assert again.backend_settings["threads"] == 2
    assert again.candidate.recipe.backend == "numpy"
    with pytest.raises(ConfigError, match="nothing here compares them"):
        octavo.quantize_model(
            path, "int8-dynamic", backend={"kind": "numpy", "threads": [1, 2]}
        )


def test_each_backend_is_held_against_its_own_float(path: Path, tmp_path: Path) -> None:
    result = tune(path, tmp_path / "h.db", backends=["onnx", "numpy"])
    assert result.baseline.recipe.backend == "onnx"
    own = result.floats["numpy"]
    assert own.recipe.backend == "numpy"
    assert not len(own.recipe)
    size, base = own.objectives["size"], result.baseline.objectives["size"]
    assert size.ratio == pytest.approx(size.value / base.value)
    summary = result.summary(160)
    assert "ratios are to the float model on onnx" in summary
    quantized = result.best_of("numpy")
    assert quantized is not None
    share = quantized.objectives["size"].value / size.value
    (row,) = (s for s in summary.splitlines() if "numpy" in s and "#" in s)
    assert f"{share:.3g}" in row
    page = result.report(tmp_path / "report.html").read_text(encoding="utf-8")
    assert "ratios are to the float model on onnx" in page
    folder = result.save(tmp_path / "out")
    kept = json.loads((folder / "octavo.json").read_text())["floats"]
    assert Trial.from_json(kept["numpy"]).metrics == own.metrics
    again = tune(path, tmp_path / "h.db", backends=["onnx", "numpy"])
    assert again.floats["numpy"].evaluated == own.evaluated
    assert again.floats["numpy"].to_json() == own.to_json()


@pytest.mark.parametrize(
    ("baseline", "name"),
    [("numpy", "numpy"), ({"kind": "onnx", "threads": 1}, "onnx(threads=1)")],
)
def test_the_baseline_is_what_is_asked_for(
    path: Path, tmp_path: Path, baseline: Any, name: str
) -> None:
    asked = ["numpy", {"kind": "onnx", "threads": 2}]
    result = tune(path, tmp_path / "h.db", backends=asked, baseline=baseline)
    assert result.baseline.recipe.backend == name
    assert name not in result.floats
    searched = {"numpy", "onnx(threads=2)" if "(" in name else "onnx"}
    assert {trial.recipe.backend for trial in result.trials} == searched
    # What is not searched takes no trials, and is told beside the others all the same.
    assert set(result.floats) == searched - {name}


def test_a_run_goes_on_only_with_the_same_settings_and_baseline(
    path: Path, tmp_path: Path
) -> None:
    first = {"kind": "numpy", "threads": 1}
    tune(path, tmp_path / "h.db", backends=[first, "onnx"], max_trials=1)
    other = {"kind": "numpy", "threads": 2}
    with pytest.raises(StoreError, match=r"another backends .*threads: 1 then, 2 now"):
        tune(path, tmp_path / "h.db", backends=[other, "onnx"], max_trials=1)
    with pytest.raises(
        StoreError, match=r"another baseline .*onnx.* then, .*numpy.* now"
    ):
        tune(path, tmp_path / "h.db", backends=[first, "onnx"], baseline="numpy")
    tune(path, tmp_path / "h.db", backends=[first, "onnx"], max_trials=1)


def test_the_model_as_given_runs_with_the_settings_of_all() -> None:
    host = PluginHost(third_party=False)
    card = host.adapters()["numpy"]

    def given(*tables: Any) -> Any:
        return as_given(card, asked_backends(tables, host), host).settings

    onnx_with = {"kind": "onnx", "threads": 1, "form": "qoperator"}
    assert given(onnx_with).threads == 1
    assert given(onnx_with, {"kind": "openvino", "threads": 1}).threads == 1
    # Where they differ, or one says nothing, or the card takes no such value, as it comes.
    assert given(onnx_with, {"kind": "openvino", "threads": 2}).threads == 0
    assert given(onnx_with, "openvino").threads == 0
    assert given({"kind": "onnx", "threads": None}).threads == 0
    assert given({"kind": "numpy", "threads": 3}, onnx_with).threads == 3


@pytest.mark.parametrize("backends", [["numpy"], ["onnx", "numpy"], ["onnx"]])
def test_what_is_loaded_is_of_the_kind_that_the_result_was(
    path: Path, tmp_path: Path, backends: list[str]
) -> None:
    result = tune(path, tmp_path / "h.db", backends=backends)
    folder = result.save(tmp_path / "out")
    assert type(octavo.load(folder)) is type(result.model)
    assert isinstance(result.model, octavo.ArrayModel) == (len(backends) > 1)
    native = load_candidate(folder).native
    assert type(octavo.load(folder, arrays=False)) is type(native)
    assert isinstance(octavo.load(folder, arrays=True), octavo.ArrayModel)
    assert score(octavo.load(folder)) == pytest.approx(score(result.model))


ALONE = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("onnx", "onnxruntime", "onnx_ir", "torch"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
import numpy as np
import octavo

x = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
_, path, storage, backend = sys.argv
settings = {"strategy": "basic", "minimise": "size", "tolerance": 0.5, "max_trials": 1}
result = octavo.autotune(
    path, lambda model: 1 / (1 + abs(float(np.asarray(model(x)).mean()))), [x],
    backends=[{"kind": backend, "threads": 1}], storage=storage, **settings,
)
assert result.baseline.recipe.backend == backend
assert result.backend_settings["threads"] == 1
assert not result.floats
assert not isinstance(result.model, octavo.ArrayModel)
octavo.quantize_model(path, "int8-static", [x], backend=backend)
from octavo.core.contract.plugins import PluginHost
from octavo.core.opening.opening import open_model

assert open_model(path, PluginHost(), backend=backend).name == backend
print("opened by", backend)
"""


def test_a_runtime_that_reads_the_file_needs_no_other(
    path: Path, tmp_path: Path
) -> None:
    pytest.importorskip("openvino")
    found = subprocess.run(
        [sys.executable, "-c", ALONE, str(path), str(tmp_path / "h.db"), "openvino"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert found.stdout.strip() == "opened by openvino", found.stderr[-2000:]


def test_weights_beside_a_file_of_openvino_count(tmp_path: Path) -> None:
    model = tmp_path / "cnn.xml"
    model.write_text("<net/>")
    with (tmp_path / "cnn.bin").open("wb") as weights:
        weights.truncate(2**20)
    with pytest.raises(ModelError, match=r"cnn\.xml needs about"):
        check_memory(model, available=2**20)
    check_memory(model, available=2 * 2**20)
