"""Modules that a forward calls without having them as children: plain lists, dictionaries, tuples,
closures."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import octavo


class InList(nn.Module):
    """Two hidden layers; ``dynamic`` is a branch on a value, which no graph shows."""

    def __init__(self, *, dynamic: bool) -> None:
        super().__init__()
        self.parts = [
            nn.Linear(32, 32),
            {"k.1": (nn.Sequential(nn.Linear(32, 32), nn.ReLU()),)},
        ]
        self.out = nn.Linear(32, 8)
        self.dynamic = dynamic

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.dynamic and float(x.sum()) > 1e9:
            x = x + 1
        y: torch.Tensor = self.out(self.parts[1]["k.1"][0](self.parts[0](x).relu()))  # type: ignore[index,operator]
        return y


def closed(*, dynamic: bool) -> nn.Module:
    first, more = nn.Linear(32, 32), [nn.Linear(32, 32)]

    class Closed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Linear(32, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if dynamic and float(x.sum()) > 1e9:
                x = x + 1
            y: torch.Tensor = self.out(more[0](first(x).relu()).relu())
            return y

    return Closed()


CASES: dict[str, tuple[Callable[..., nn.Module], set[str]]] = {
    "list": (InList, {"parts[0]", "parts[1][k_1][0].0", "out"}),
    "closure": (closed, {"first", "more[0]", "out"}),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("calibrated", [False, True])
def test_a_hidden_layer_is_quantized_where_it_stands(
    name: str, dynamic: bool, calibrated: bool, tmp_path: Path
) -> None:
    make, names = CASES[name]

    def made() -> nn.Module:
        torch.manual_seed(0)
        return make(dynamic=dynamic).eval()

    model, x = made(), torch.randn(4, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(x)
    data = [(x,)] if calibrated else None
    quantized = octavo.quantize_model(model, "int8-weight-only", calibration=data)
    assert set(quantized.candidate.ledger) == names
    got = quantized.model(x).detach()
    assert 0 < float((got - expected).norm() / expected.norm()) < 0.02
    with torch.no_grad():
        assert torch.equal(model(x), expected)
    assert torch.equal(copy.deepcopy(quantized.model)(x), got)
    quantized.save(tmp_path / "saved")
    loaded = octavo.load(tmp_path / "saved", model=made())
    assert torch.equal(loaded(x), got)


def test_the_users_list_holds_the_users_layer() -> None:
    model = InList(dynamic=True).eval()
    first = model.parts[0]
    octavo.quantize_model(
        model, "int8-weight-only", calibration=[(torch.randn(4, 32),)]
    )
    assert model.parts[0] is first
    assert type(first) is nn.Linear
    assert list(dict(model.named_children())) == ["out"]
