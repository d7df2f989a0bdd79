"""Inputs of 4 and 16 bits, which no kernel takes: the numbers are the scheme's, in plain NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import octavo
from octavo.adapters.pytorch.qlayers.simulated import Simulated

X = torch.randn(6, 5, 32, generator=torch.Generator().manual_seed(1))


def layer() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 16), nn.ReLU()).eval()


def quantized(model: nn.Module, x: torch.Tensor, **scheme: object) -> octavo.Quantized:
    rules = [{"types": ["linear", "conv"], **scheme}]
    settings = {"simulated": True, "rules": rules}
    return octavo.quantize_model(model, settings, calibration=[(x,)])


def by_channel(weight: np.ndarray, high: int) -> np.ndarray:
    scale = np.abs(weight).max(1, keepdims=True) / high
    return np.clip(np.round(weight / scale), -high - 1, high) * scale


def on_range(x: np.ndarray, low: float, high: float, most: int) -> np.ndarray:
    scale = np.float32((high - low) / most)
    zero = np.clip(np.round(-low / scale), 0, most)
    return (np.clip(np.round(x / scale) + zero, 0, most) - zero) * scale


@pytest.mark.parametrize(("bits", "most"), [(4, 15), (16, 65535)])
def test_static_inputs_are_rounded_to_the_calibrated_range(
    bits: int, most: int
) -> None:
    model = layer()
    weight = {"dtype": "int4" if bits == 4 else "int8", "granularity": "channel"}
    source = {"dtype": f"uint{bits}", "symmetric": False}
    made = quantized(model, X, mode="static", weight=weight, input=source)
    (line,) = made.candidate.ledger.values()
    assert line.realization == "simulated"
    assert line.honoured
    matrix = model[0].weight.detach().numpy()
    if bits == 4:
        stored = by_channel(matrix, 7)
    else:
        scale = np.abs(matrix).max(1, keepdims=True) / 127
        stored = np.round(matrix / scale) * scale
    # Beyond the calibrated range, too.
    x = 1.5 * X.numpy()
    low, high = X.min().item(), X.max().item()
    wanted = on_range(x, low, high, most) @ stored.T + model[0].bias.detach().numpy()
    with torch.no_grad():
        got = made.model(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(got, np.maximum(wanted, 0), rtol=1e-4, atol=1e-5)


def test_dynamic_inputs_have_a_range_for_each_token() -> None:
    model = layer()
    weight = {"dtype": "int2", "granularity": "channel"}
    source = {"dtype": "int4", "granularity": "token"}
    made = quantized(model, X, mode="dynamic", weight=weight, input=source)
    x = X.numpy()
    scale = np.abs(x).max(-1, keepdims=True) / 7
    rounded = np.clip(np.round(x / scale), -8, 7) * scale
    stored = by_channel(model[0].weight.detach().numpy(), 1)
    wanted = rounded @ stored.T + model[0].bias.detach().numpy()
    with torch.no_grad():
        got = made.model(X).numpy()
    np.testing.assert_allclose(got, np.maximum(wanted, 0), rtol=1e-4, atol=1e-5)


class Residual(nn.Module):
    """A convolution whose batch norm, add and ReLU integer kernels take in."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.first(x))
        return torch.relu(x + self.second(x))


def test_convolutions_take_in_norms_adds_and_activations(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Residual().eval(), torch.randn(2, 2, 6, 6)
    weight = {"dtype": "int8", "granularity": "channel"}
    source = {"dtype": "uint16", "symmetric": False}
    made = quantized(model, x, mode="static", weight=weight, input=source)
    with torch.no_grad():
        wanted, got = model(x), made.model(x)
    assert (got - wanted).abs().max() < 0.02 * wanted.abs().max()
    assert sum(isinstance(m, Simulated) for m in made.model.modules()) == 2
    made.save(tmp_path / "saved")
    with torch.no_grad():
        again = octavo.load(tmp_path / "saved", Residual)(x)
    torch.testing.assert_close(again, got, rtol=0, atol=0)


def test_gradients_pass_where_the_range_does_not_clip() -> None:
    model = layer()
    weight = {"dtype": "int8", "granularity": "channel"}
    source = {"dtype": "uint4", "symmetric": False}
    made = quantized(model, X, mode="static", weight=weight, input=source)
    (simulated,) = (m for m in made.model.modules() if isinstance(m, Simulated))
    x = torch.linspace(-10, 10, 64).view(2, 32).requires_grad_()
    simulated.rounded(x).sum().backward()
    low, high = X.min().item(), X.max().item()
    step = (high - low) / 15
    inside = ((x > low + step) & (x < high - step)).float()
    outside = ((x < low - step) | (x > high + step)).float()
    assert x.grad is not None
    assert torch.equal(x.grad * inside, inside)
    assert not (x.grad * outside).any()
    assert x.detach().min() < low < high < x.detach().max()


def test_without_being_asked_for_they_are_not_offered() -> None:
    rules = [{"types": "linear", "mode": "static", "input": {"dtype": "uint4"}}]
    with pytest.raises(octavo.OctavoError, match="simulated"):
        octavo.quantize_model(layer(), {"rules": rules}, calibration=[(X,)])
