"""A backend's settings hold for the baseline, the candidates, the confirmation and the model that
is loaded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import octavo
from octavo.core.errors import ConfigError, DeviceError
from octavo.core.results.result import load_candidate
from octavo.core.tuning.progress import Progress
from tests import tiny

torch = pytest.importorskip("torch")
ort = pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def network() -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10)
    ).eval()


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Threads of every session of ONNX Runtime that is started."""
    found: list[int] = []
    real = ort.InferenceSession

    class Recorded(real):  # type: ignore[misc, valid-type]
        def __init__(self, model: Any, sess_options: Any = None, **named: Any) -> None:
            found.append(
                sess_options.intra_op_num_threads if sess_options is not None else 0
            )
            super().__init__(model, sess_options, **named)

    monkeypatch.setattr(ort, "InferenceSession", Recorded)
    return found


class Notes(Progress):
    texts: Sequence[str] = ()

    def note(self, text: str) -> None:
        self.texts = (*self.texts, text)


def tune(network: Any, storage: Path, **settings: Any) -> octavo.Result:
    x = tiny.digits()[0]
    expected = network(torch.from_numpy(x)).argmax(1).numpy()

    def agrees(model: Any) -> float:
        return float((model(x).argmax(1) == expected).mean())

    settings = {
        "strategy": "basic",
        "max_trials": 1,
        "minimise": "size",
        "tolerance": 0.05,
        **settings,
    }
    return octavo.autotune(
        network, agrees, [x[:64]], storage=storage, arrays=True, **settings
    )


def test_a_foreign_backend_is_measured_against_its_own_float_model(
    network: Any, tmp_path: Path, started: list[int]
) -> None:
    notes = Notes()
    result = tune(
        network,
        tmp_path / "h.db",
        backends=[{"kind": "onnx", "threads": 1}],
        callbacks=[notes],
    )
    assert result.baseline.recipe.backend == "onnx"
    assert result.goal_met
    # The baseline, candidates and the loaded winner, all of them with the threads that were asked
    # for.
    assert started
    assert set(started) == {1}
    # Float weights in the exported file, to within the graph around them.
    weights = 4 * sum(p.numel() for p in network.parameters())
    assert weights <= result.baseline.objectives["size"].value < weights + 4096
    (told,) = (t for t in notes.texts if "the float model as given, on torch" in t)
    assert "score 1" in told
    assert "size" in told
    started.clear()
    folder = result.save(tmp_path / "out")
    assert (
        json.loads((folder / "octavo.json").read_text())["backend_settings"]["threads"]
        == 1
    )
    x = tiny.digits()[0][:8]
    np.testing.assert_array_equal(
        np.asarray(octavo.load(folder)(x)), np.asarray(result.model(x))
    )
    assert set(started) == {1}
    started.clear()
    octavo.load(folder, backend={"threads": 2})(x)
    assert set(started) == {2}
    with pytest.raises(ConfigError, match="'thread'; did you mean 'threads'"):
        octavo.load(folder, backend={"thread": 2})


def test_an_export_that_loses_by_itself_is_told(network: Any, tmp_path: Path) -> None:
    x = tiny.digits()[0]
    seen: list[bool] = []

    def prefers_torch(model: octavo.ArrayModel) -> float:
        seen.append(model.backend == "torch")
        return 1.0 if seen[-1] else 0.8

    notes = Notes()
    octavo.autotune(
        network,
        prefers_torch,
        [x[:64]],
        backends=["onnx"],
        strategy="basic",
        max_trials=1,
        minimise="size",
        storage=tmp_path / "h.db",
        callbacks=[notes],
    )
    assert any(
        "the export alone loses more than is tolerated" in t for t in notes.texts
    )
    assert seen.count(True) == 1


def test_one_search_over_several_backends_keeps_the_model_as_given(
    network: Any, tmp_path: Path
) -> None:
    result = tune(network, tmp_path / "h.db", backends=["torch", "onnx"], max_trials=2)
    assert result.baseline.recipe.backend == "torch"


def test_settings_of_a_model_quantized_without_a_search_are_kept(
    tmp_path: Path,
) -> None:
    from sklearn.neural_network import MLPClassifier

    x, y = tiny.digits()
    net = MLPClassifier((16,), max_iter=20, random_state=0).fit(x, y)
    made = octavo.quantize_model(
        net, "int8-static", [x[:64]], backend={"kind": "numpy", "threads": 1}
    )
    folder = made.save(tmp_path / "out")
    assert (
        json.loads((folder / "octavo.json").read_text())["backend_settings"]
        == made.backend_settings
    )
    loaded: Any = load_candidate(folder)
    assert loaded.__getstate__()["threads"] == 1
    other: Any = load_candidate(folder, backend={"threads": 3})
    assert other.__getstate__()["threads"] == 3


def test_a_result_of_an_older_octavo_loads(network: Any, tmp_path: Path) -> None:
    x = torch.from_numpy(tiny.digits()[0][:64])
    folder = octavo.quantize_model(network, "int8-static", [x]).save(tmp_path / "out")
    manifest = json.loads((folder / "octavo.json").read_text())
    del manifest["backend_settings"]
    (folder / "octavo.json").write_text(json.dumps(manifest))
    assert torch.isfinite(octavo.load(folder, network)(x)).all()


def test_a_file_cannot_grant_itself_trust(
    network: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from octavo.adapters.pytorch import adapter

    x = torch.from_numpy(tiny.digits()[0][:64])
    made = octavo.quantize_model(
        network, "int8-static", [x], backend={"kind": "torch", "trust": True}
    )
    folder = made.save(tmp_path / "out")
    manifest = json.loads((folder / "octavo.json").read_text())
    assert "trust" not in manifest["backend_settings"]
    manifest["backend_settings"]["trust"] = True
    (folder / "octavo.json").write_text(json.dumps(manifest))
    built: list[Any] = []
    real = adapter.TorchAdapter.__init__
    monkeypatch.setattr(
        adapter.TorchAdapter,
        "__init__",
        lambda self, config: (built.append(config), real(self, config))[1],
    )
    load_candidate(folder, network)
    assert [config.trust for config in built] == [False]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is such a device here")
def test_a_device_that_is_not_here_is_told_with_the_way_out(
    network: Any, tmp_path: Path
) -> None:
    x = torch.from_numpy(tiny.digits()[0][:64])
    folder = octavo.quantize_model(network, "int8-static", [x]).save(tmp_path / "out")
    manifest = json.loads((folder / "octavo.json").read_text())
    manifest["backend_settings"]["device"] = "cuda"
    (folder / "octavo.json").write_text(json.dumps(manifest))
    with pytest.raises(
        DeviceError, match=r"octavo\.load\(.*backend=\{'device': 'cpu'\}\)"
    ):
        octavo.load(folder, network)
    octavo.load(folder, network, backend={"device": "cpu"})(x)
