"""Cells of recurrent networks: each matrix is a layer, and the steps are the float cell's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import octavo

Tensor = torch.Tensor


class Steps(nn.Module):
    """An LSTM cell over the steps of a sequence, then a GRU cell and two plain ones."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru = nn.LSTMCell(8, 16), nn.GRUCell(16, 16)
        self.tanh, self.relu = nn.RNNCell(16, 16), nn.RNNCell(16, 16, False, "relu")

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(x.shape[0], 16)
        for t in range(x.shape[1]):
            h, c = self.lstm(x[:, t], (h, c))
        h = self.gru(h, c)
        y: Tensor = self.relu(self.tanh(h), h)
        return y


NAMES = {
    f"{cell}.weight_{part}_layer"
    for cell in ("lstm", "gru", "tanh", "relu")
    for part in ("ih", "hh")
}


@pytest.mark.parametrize("scheme", ["int8-static", "int8-dynamic", "int8-weight-only"])
@pytest.mark.parametrize("calibrated", [True, False])
def test_every_matrix_of_a_cell_is_quantized(
    scheme: str, calibrated: bool, tmp_path: Path
) -> None:
    if scheme == "int8-static" and not calibrated:
        return
    torch.manual_seed(0)
    model, x = Steps().eval(), torch.randn(3, 5, 8)
    with torch.no_grad():
        expected = model(x)
    data = [(x,)] if calibrated else None
    quantized = octavo.quantize_model(model, scheme, calibration=data)
    assert set(quantized.candidate.ledger) == NAMES
    assert quantized.coverage.kept == 0
    got = quantized.model(x).detach()
    assert 0 < float((got - expected).norm() / expected.norm()) < 0.05
    quantized.save(tmp_path / "saved")
    assert torch.equal(octavo.load(tmp_path / "saved", model=Steps().eval())(x), got)


@pytest.mark.parametrize("act", ["tanh", "relu"])
def test_a_plain_recurrent_network_stores_its_weights(act: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    settings = {"bidirectional": True, "batch_first": True, "nonlinearity": act}

    def made() -> nn.Module:
        return nn.Sequential(nn.Linear(8, 16), nn.RNN(16, 16, 2, **settings))  # type: ignore[arg-type]

    model, x = made().eval(), torch.randn(3, 5, 8)
    with torch.no_grad():
        expected = model(x)[0]
    quantized = octavo.quantize_model(model, "int8-weight-only", calibration=[(x,)])
    assert set(quantized.candidate.ledger) == {"0", "1"}
    got = quantized.model(x)[0].detach()
    assert 0 < float((got - expected).norm() / expected.norm()) < 0.02
    quantized.save(tmp_path / "saved")
    assert torch.equal(octavo.load(tmp_path / "saved", model=made().eval())(x)[0], got)
