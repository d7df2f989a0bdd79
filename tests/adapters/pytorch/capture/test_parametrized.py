"""Weights that are computed before each call: norms, masks and parametrizations are folded in the
candidate alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils import weight_norm as old_weight_norm

import octavo

SCHEMES = ("int8-dynamic", "int8-weight-only")


class Doubled(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


def convolutions(wrap: Callable[[nn.Module], nn.Module]) -> nn.Module:
    first = wrap(nn.Conv1d(4, 8, 3, padding=1))
    return nn.Sequential(
        first, nn.ReLU(), nn.Conv1d(8, 2, 1), nn.Flatten(), nn.Linear(16, 4)
    )


def pruned() -> nn.Module:
    model = convolutions(lambda m: m)
    prune.l1_unstructured(model[0], "weight", 0.5)
    prune.random_unstructured(model[0], "bias", 0.5)
    prune.ln_structured(model[4], "weight", 0.25, 2, 0)
    prune.l1_unstructured(model[4], "weight", 0.25)
    return model


def doubled() -> nn.Module:
    model = convolutions(lambda m: m)
    parametrize.register_parametrization(model[4], "weight", Doubled())
    return model


MAKERS: dict[str, Callable[[], nn.Module]] = {
    "weight norm": lambda: convolutions(parametrizations.weight_norm),
    "weight norm by hooks": lambda: convolutions(old_weight_norm),
    "spectral norm": lambda: convolutions(parametrizations.spectral_norm),
    "spectral norm by hooks": lambda: convolutions(old_spectral_norm),
    "orthogonal": lambda: convolutions(parametrizations.orthogonal),
    "pruned": pruned,
    "own": doubled,
}


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MAKERS[name]().eval()


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_computed_weight_is_quantized_and_the_users_module_stays(
    name: str, scheme: str, tmp_path: Path
) -> None:
    model, x = (
        made(name),
        torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(1)),
    )
    before = {key: value.clone() for key, value in model.state_dict().items()}
    kind = type(model[0])
    with torch.no_grad():
        expected = model(x)
    quantized = octavo.quantize_model(model, scheme, calibration=[(x,)])
    assert set(quantized.candidate.ledger) == {"0", "2", "4"}
    got = quantized.model(x).detach()
    error = float((got - expected).norm() / expected.norm())
    assert 0 < error < 0.05
    assert type(model[0]) is kind
    assert model.state_dict().keys() == before.keys()
    assert all(
        torch.equal(value, before[key]) for key, value in model.state_dict().items()
    )
    with torch.no_grad():
        assert torch.equal(model(x), expected)
    quantized.save(tmp_path / "saved")
    loaded = octavo.load(tmp_path / "saved", model=made(name))
    assert torch.equal(loaded(x), got)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("norm", [old_weight_norm, parametrizations.weight_norm])
def test_a_recurrent_layer_with_a_normed_weight_keeps_its_other_direction(
    norm: Callable[..., nn.Module],
) -> None:
    torch.manual_seed(0)

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            recurrent = nn.LSTM(8, 16, bidirectional=True, batch_first=True)
            self.recurrent = norm(recurrent, "weight_hh_l0")

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.recurrent(x)[0]
            return y

    model, x = Last().eval(), torch.randn(2, 5, 8)
    with torch.no_grad():
        expected = model(x)
    quantized = octavo.quantize_model(model, "int8-weight-only", calibration=[(x,)])
    got = quantized.model(x).detach()
    assert 0 < float((got - expected).norm() / expected.norm()) < 0.02
    with torch.no_grad():
        assert torch.equal(model(x), expected)
