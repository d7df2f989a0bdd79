"""One search over three runtimes, and channels that lie far apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("openvino")
torch = pytest.importorskip("torch")

import openvino as ov  # noqa: E402

import octavo  # noqa: E402
from octavo.core.values.scheme import PartChoice  # noqa: E402
from tests.rescaled_digits import (  # noqa: E402
    accuracy,
    images,
    opened,
    realizer,
    rescaled,
    trained,
)

SMOOTH = PartChoice(kind="smoothquant")


def test_rescaled_channels_cost_nothing_at_full_int8(tmp_path: Path) -> None:
    net = rescaled()
    x, y = images()
    with torch.no_grad():
        exact = float((net(x[1200:]).argmax(1) == y[1200:]).float().mean())
    made = realizer(opened("openvino", net, tmp_path), (SMOOTH,))
    assert accuracy(made) < exact - 0.2
    assert accuracy(made, SMOOTH) > exact - 0.01
    recipe = made.space.recipe(made.space.first(), (SMOOTH,))
    ledger = made.candidate(recipe).ledger
    kinds = {ledger[name].realization for name in recipe}
    assert kinds == {"kernel"}
    assert set(ledger) == set(made.opened.view.by_name)


def test_three_runtimes_are_one_search(tmp_path: Path) -> None:
    x, y = images()

    def score(model: object) -> float:
        outputs = np.asarray(model(x[1200:].numpy()))  # type: ignore[operator]
        return float((outputs.argmax(1) == y[1200:].numpy()).mean())

    result = octavo.autotune(
        trained(),
        score,
        [(x[i : i + 64],) for i in range(0, 128, 64)],
        backends=["onnx", {"kind": "openvino", "threads": 1}, "torch"],
        max_trials=3,
    )
    assert {trial.recipe.backend for trial in result.trials} >= {"onnx", "openvino"}


def test_a_saved_result_is_plain_openvino(tmp_path: Path) -> None:
    x, _ = images()
    made = octavo.quantize_model(
        trained(),
        "int8-static",
        [(x[:64],), (x[64:128],)],
        backend={"kind": "openvino", "threads": 1},
    )
    made.save(tmp_path / "saved")
    (path,) = (tmp_path / "saved").rglob("*.xml")
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    plain = ov.Core().compile_model(path, "CPU", settings)
    batch = x[1200:1210].numpy()
    expected = plain([batch])[0]
    loaded = octavo.load(tmp_path / "saved")
    np.testing.assert_array_equal(np.asarray(loaded(batch)), expected)
    np.testing.assert_array_equal(np.asarray(made.model(batch)), expected)
