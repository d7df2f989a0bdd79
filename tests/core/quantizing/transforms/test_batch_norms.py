"""SPIQ without data: batch norms tell how their outputs are spread, on every backend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from octavo.core.contract.adapter import Opened  # noqa: E402
from octavo.core.quantizing.transforms.spiq import Spiq, SpiqConfig  # noqa: E402
from octavo.core.values.scheme import PartChoice  # noqa: E402
from tests.rescaled_digits import (  # noqa: E402
    HOST,
    accuracy,
    images,
    opened,
    realizer,
    rescaled,
    trained,
)

FROM_NORM = PartChoice(kind="spiq", options=(("source", "norm"),))
FROM_DATA = PartChoice(kind="spiq")
BACKENDS = ["torch", "onnx", "numpy"]


def _factors(made: Any, source: Any) -> dict[str, np.ndarray]:
    view, session = made.opened.view, made.opened.session
    ops = {op.name: op for op in view.ops if op.weight is not None}
    statistics = made.statistics or made.prepared(()).statistics
    found = Spiq(SpiqConfig(source=source)).factors(
        view, session.tensor, statistics, ops
    )
    return {name: np.asarray(array) for name, array in found.items()}


@pytest.mark.parametrize("backend", BACKENDS)
def test_data_free_factors_are_near_those_that_calibration_gives(
    backend: str, tmp_path: Path
) -> None:
    net = rescaled()
    model = opened(backend, net, tmp_path)
    made = realizer(model, (FROM_NORM,), (FROM_DATA,))
    from_norm, from_data = _factors(made, "norm"), _factors(made, "calibration")
    behind_first = [
        group
        for group in model.view.groups
        if group.kind == "rescale" and group.gain and group.channels == 16
    ]
    assert len(behind_first) == 1
    name = behind_first[0].name
    # Nagel et al. 2019, section 4.2: mean beta, deviation gamma; ReLU keeps the upper end.
    gamma, beta = net[1].weight.detach().numpy(), net[1].bias.detach().numpy()
    reach = np.maximum(0, beta + 6 * np.abs(gamma))
    expected = reach / np.exp(np.mean(np.log(reach)))
    np.testing.assert_allclose(from_norm[name], expected, rtol=1e-5)
    # Channels lie 4096 apart; without data they are known within a factor of two.
    ratio = np.log2(from_norm[name] / from_data[name])
    assert np.abs(ratio).max() < 2
    assert np.abs(ratio).mean() < 0.5
    assert np.ptp(np.log2(from_data[name])) > 8


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_data_int8_gets_back_what_rescaled_channels_cost(
    backend: str, tmp_path: Path
) -> None:
    made = realizer(opened(backend, rescaled(), tmp_path), (FROM_NORM,))
    x, y = images()
    with torch.no_grad():
        float_accuracy = float(
            (trained()(x[1200:]).argmax(1) == y[1200:]).float().mean()
        )
    assert float_accuracy > 0.9
    assert accuracy(made) < float_accuracy - 0.2
    assert accuracy(made, FROM_NORM) > float_accuracy - 0.03


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_norm_that_is_divided_tells_of_the_divided_value(
    backend: str, tmp_path: Path
) -> None:
    """A transform after another reads the norm of the rescaled model, not the first one's."""
    model = opened(backend, rescaled(), tmp_path)
    groups = [g for g in model.view.groups if g.kind == "rescale" and g.gain]
    factors = {
        g.name: np.linspace(0.5, 2, g.channels, dtype=np.float32) for g in groups
    }
    assert len(groups) >= 2
    after = model.session.rescale(factors)
    for group in groups:
        for name in (group.gain, group.shift):
            np.testing.assert_allclose(
                np.asarray(after.tensor(name)),
                np.asarray(model.session.tensor(name)) / factors[group.name],
                rtol=1e-5,
            )


@pytest.mark.parametrize("backend", ["onnx", "numpy"])
def test_norms_that_were_folded_before_are_missed_aloud(
    backend: str, tmp_path: Path, logged: pytest.LogCaptureFixture
) -> None:
    x = images()[0][:64]
    # The exporter folds batch norms by itself.
    torch.onnx.export(
        trained(), (x,), str(tmp_path / "folded.onnx"), dynamo=False, verbose=False
    )
    path = str(tmp_path / "folded.onnx")
    session = HOST.adapters()[backend].build().open(path, (x.numpy(),))
    model = Opened(backend, session, session.describe(), session.capability())
    made = realizer(model, (FROM_NORM,))
    candidate = made.candidate(made.space.recipe(made.space.first(), (FROM_NORM,)))
    assert "a batch norm that was folded before the model was saved" in logged.text
    reader = next(g for g in model.view.groups if g.kind == "rescale").members[0]
    assert "spiq: nothing over rescale:" in candidate.ledger[reader].reason
