"""A rule may ask for weights of seven bits on every backend, whatever this CPU does by itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import octavo

torch = pytest.importorskip("torch")
nn = torch.nn


@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize("backend", ["torch", "onnx", "numpy"])
def test_seven_bits_are_asked_for_and_right_at_the_end_of_the_range(
    backend: str, kind: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(64, 8) if kind == "linear" else nn.Conv2d(8, 8, 3)
    net = nn.Sequential(layer).eval()
    with torch.no_grad():
        # All of one sign and nearly one size: 16 bits hold no two such products of whole bytes.
        layer.weight.copy_(1 + 0.01 * torch.rand_like(layer.weight))
    shape = (4, 64) if kind == "linear" else (2, 8, 6, 6)
    x = 0.9 + 0.1 * torch.rand(shape)
    model = net
    if backend != "torch":
        model = str(tmp_path / "m.onnx")
        torch.onnx.export(net, (x,), model, dynamo=False)
    rule = {"mode": "static", "weight": {"dtype": "int8", "reduce_range": True}}
    made = octavo.quantize_model(
        model, {"rules": [rule], "backends": [backend]}, calibration=[x.numpy()]
    )
    (line,) = [line for line in made.ledger.values() if not line.requested.is_float]
    for scheme in (line.requested, line.applied):
        assert scheme.weight is not None
        assert scheme.weight.reduce_range
    with torch.no_grad():
        expected = net(x).numpy()
        found = np.asarray(made.model(x if backend == "torch" else x.numpy()))
    np.testing.assert_allclose(found, expected, rtol=0.02)
