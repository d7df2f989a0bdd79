"""Subclasses of torch's layers: taken for what their forward computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import octavo

Tensor = torch.Tensor


class Turned(nn.Linear):
    """Computes what its base computes, in other words."""

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.weight.T
        return y if self.bias is None else y + self.bias


class Named(nn.Conv1d):
    """Changes nothing of what is computed."""

    kind = "named"


class Doubled(nn.Linear):
    """Computes something else by its weight."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * F.linear(x, self.weight) - 1


class Normed(nn.Linear):
    """Multiplies by something that it makes of its weight."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, F.normalize(self.weight), self.bias)


class ScaledTable(nn.Embedding):
    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids) * 5.5


class Places(nn.Embedding):
    """Makes its ids itself, shifted by two."""

    def forward(self, ids: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1]).expand(ids.shape) + 2
        return super().forward(places)


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.places, self.kind = (
            ScaledTable(48, 32),
            Places(12, 32),
            Named(32, 32, 1),
        )
        self.turned, self.doubled = Turned(32, 32), Doubled(32, 32, bias=False)
        self.normed, self.head = Normed(32, 32), nn.Linear(32, 48, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        if int(ids.sum()) > 1_000_000:
            return ids
        x = self.table(ids) + self.places(ids)
        x = self.kind(x.transpose(1, 2)).transpose(1, 2)
        y: Tensor = self.head(self.normed(self.doubled(self.turned(x))))
        return y


def made() -> nn.Module:
    torch.manual_seed(0)
    return Tiny().eval()


@pytest.mark.parametrize("scheme", ["int8-weight-only", "int8-dynamic"])
@pytest.mark.parametrize("calibrated", [True, False])
def test_subclasses_are_layers(scheme: str, calibrated: bool, tmp_path: Path) -> None:
    model, ids = made(), torch.arange(14).view(2, 7)
    with torch.no_grad():
        expected = model(ids)
    data = [(ids,)] if calibrated else None
    quantized = octavo.quantize_model(model, scheme, calibration=data)
    names = {"table", "places", "kind", "turned", "head"}
    assert set(quantized.candidate.ledger) - {"doubled.weight_layer"} == names
    got = quantized.model(ids).detach()
    assert 0 < float((got - expected).norm() / expected.norm()) < 0.05
    rows = {row.weight: row for row in quantized.coverage.rows}
    assert rows["normed.weight"].reason
    assert rows["table.weight"].bits == 8
    if calibrated:
        assert all(
            row.bits == 8 for name, row in rows.items() if name != "normed.weight"
        )
    assert type(model.turned) is Turned
    quantized.save(tmp_path / "saved")
    # Table and head are tied: one set of codes.
    stored = sum(row.elements for row in rows.values() if row.bits == 8)
    floats = sum(row.elements for row in rows.values() if row.bits == 32)
    size = (tmp_path / "saved" / "model" / "model.safetensors").stat().st_size
    assert size < stored + 4 * floats + 6000
    assert torch.equal(octavo.load(tmp_path / "saved", model=made())(ids), got)


def test_a_stand_ins_weight_decodes_when_it_is_read() -> None:
    model = nn.Sequential(nn.Conv1d(4, 8, 3), nn.Flatten(), nn.Linear(48, 16)).eval()
    x = torch.randn(2, 4, 8)
    for scheme in ("int8-weight-only", "int8-dynamic", "int4-weight-only"):
        quantized = octavo.quantize_model(model, scheme, calibration=[(x,)]).model
        for index in (0, 2):
            own, other = (
                model[index].weight.detach(),
                quantized.get_submodule(str(index)).weight,
            )
            assert isinstance(other, Tensor)
            assert other.shape == own.shape
            assert other.dtype == own.dtype
            assert isinstance(other.squeeze(0)[0], Tensor)
            spread = float((other + 0 - own).norm() / own.norm())
            assert 0 < spread < (0.2 if scheme.startswith("int4") else 0.02)


def test_a_cast_of_the_whole_model_keeps_the_layers_precise() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16)).eval()
    x = torch.randn(5, 64)
    with torch.no_grad():
        expected = model(x)
    for scheme in (
        "int8-weight-only",
        "int8-dynamic",
        "int8-static",
        "int4-weight-only",
    ):
        quantized = octavo.quantize_model(model, scheme, calibration=[(x,)]).model
        for dtype in (torch.bfloat16, torch.float16):
            cast = quantized.to(dtype)
            y = cast(x.to(dtype))
            assert y.dtype == dtype
            least = 0.05 if scheme.startswith("int8") else 0.2
            assert float((y.float() - expected).norm() / expected.norm()) < least
        again = quantized.to(torch.float32)(x)
        assert again.dtype == torch.float32
