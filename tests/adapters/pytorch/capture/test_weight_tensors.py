"""Parameters that a forward multiplies by itself, in models that are traced and in models that
cannot be."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import octavo

Tensor = torch.Tensor


def shape(*sizes: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*sizes) / 5)


class Product(nn.Module):
    """One product by a parameter; ``branches`` is a branch on a value, which no graph shows."""

    def __init__(self, name: str, branches: bool) -> None:
        super().__init__()
        self.name = name
        self.w, self.b = shape(*CASES[name][0]), nn.Parameter(torch.randn(1, 16) / 5)
        self.branches = branches

    def forward(self, x: Tensor) -> Tensor:
        if self.branches and float(x.double().sum()) > 1e9:
            x = x + 1
        y: Tensor = CASES[self.name][2](self, x)
        return y


Case = tuple[tuple[int, ...], tuple[int, ...], Callable[[Any, Tensor], Tensor]]
CASES: dict[str, Case] = {
    "matmul": ((32, 16), (2, 5, 32), lambda m, x: x @ m.w),
    "transposed": ((16, 32), (2, 5, 32), lambda m, x: x @ m.w.T),
    "turned twice": ((32, 16), (5, 32), lambda m, x: torch.mm(x, m.w.t().transpose(0, 1))),
    "left": ((16, 32), (2, 32, 5), lambda m, x: m.w @ x),
    "linear": ((16, 32), (5, 32), lambda m, x: F.linear(x, m.w, m.b[0])),
    "addmm": ((32, 16), (5, 32), lambda m, x: torch.addmm(m.b, x, m.w, beta=0.5, alpha=2)),
    "bmm": ((4, 32, 16), (4, 5, 32), lambda m, x: torch.bmm(x, m.w)),
    "bmm left": ((4, 16, 32), (4, 32, 5), lambda m, x: torch.bmm(m.w, x)),
    "baddbmm": ((4, 32, 16), (4, 5, 32), lambda m, x: torch.baddbmm(m.b[None], x, m.w)),
    "batched": ((4, 32, 16), (2, 4, 5, 32), lambda m, x: x @ m.w),
    "chosen": ((3, 32, 16), (5, 32), lambda m, x: x @ m.w[0] + x @ m.w[-1] @ m.w[1].T @ m.w[1]),
    "einsum": ((32, 16), (2, 5, 32), lambda m, x: torch.einsum("bti,io->bto", x, m.w)),
    "einsum over heads": (
        (4, 32, 16), (2, 4, 5, 32), lambda m, x: torch.einsum("bhtd,hde->bthe", x, m.w),
    ),
    "einsum into heads": (
        (32, 4, 16), (2, 5, 32), lambda m, x: torch.einsum("btd,dhe->bhte", x, m.w),
    ),
    "einsum with dots": (
        (16, 32), (2, 5, 32), lambda m, x: torch.einsum("ed,...d->...e", m.w, x),
    ),
    "tensordot": (
        (5, 32, 16), (2, 5, 32), lambda m, x: torch.tensordot(x, m.w, ([2, 1], [1, 0])),
    ),
    "convolution": ((16, 2, 3), (2, 4, 9), lambda m, x: F.conv1d(x, m.w, m.b[0], 2, 1, groups=2)),
    "half": ((32, 16), (5, 32), lambda m, x: (x.bfloat16() @ m.w.to(torch.bfloat16)).float()),
    "bilinear": ((16, 32, 32), (5, 32), lambda m, x: F.bilinear(x, x.flip(-1), m.w)),
}  # fmt: skip


def made(name: str, branches: bool) -> nn.Module:
    torch.manual_seed(0)
    return Product(name, branches).eval()


def error(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


@pytest.mark.parametrize("branches", [False, True], ids=["traced", "modules"])
@pytest.mark.parametrize("name", CASES)
def test_a_parameter_is_quantized_however_it_is_multiplied_by(
    name: str, branches: bool, tmp_path: Path
) -> None:
    model = made(name, branches)
    x = torch.randn(*CASES[name][1], generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(x)
    for scheme in ("int8-weight-only", "int8-dynamic", "int8-static"):
        quantized = octavo.quantize_model(model, scheme, calibration=[(x,)])
        weight = next(row for row in quantized.coverage.rows if row.weight == "w")
        assert weight.elements == model.w.numel()  # type: ignore[operator,union-attr]
        assert weight.bits == 8
        got = quantized.model(x).detach()
        assert 0 < error(got, expected) < 0.05
        assert torch.equal(copy.deepcopy(quantized.model)(x), got)
        folder = tmp_path / scheme
        quantized.save(folder)
        assert torch.equal(octavo.load(folder, model=made(name, branches))(x), got)
    with torch.no_grad():
        assert torch.equal(model(x), expected)


class Tied(nn.Module):
    """A table that is looked up, multiplied by, and asked for its rows and its norm."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.places, self.head = (
            shape(48, 32),
            shape(9, 32),
            nn.Linear(32, 48),
        )

    def forward(self, ids: Tensor) -> Tensor:
        if int(ids.sum()) > 1_000_000:
            return ids
        x = F.embedding(ids, self.table) + self.places[: ids.shape[1]]
        y: Tensor = x @ self.table.T * self.table.norm() + x @ self.head.weight.T
        return y


def test_a_table_that_is_also_a_head_is_one_set_of_codes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, ids = Tied().eval(), torch.arange(14).view(2, 7)
    with torch.no_grad():
        expected = model(ids)
    quantized = octavo.quantize_model(model, "int8-weight-only", calibration=[(ids,)])
    got = quantized.model(ids).detach()
    assert 0 < error(got, expected) < 0.02
    assert {row.weight for row in quantized.coverage.rows} == {
        "table",
        "places",
        "head.weight",
    }
    assert all(row.bits == 8 for row in quantized.coverage.rows)
    quantized.save(tmp_path / "saved")
    size = (tmp_path / "saved" / "model" / "model.safetensors").stat().st_size
    assert size < 1.5 * (48 * 32 * 2 + 9 * 32) + 3000
    assert torch.equal(octavo.load(tmp_path / "saved", model=Tied().eval())(ids), got)
    again = pickle.loads(pickle.dumps(quantized.model))
    assert torch.equal(again(ids), got)


class Scaled(nn.Module):
    """A parameter that is no factor of a product stays float, and is said to."""

    def __init__(self) -> None:
        super().__init__()
        self.gain, self.layer = shape(1, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        if float(x.sum()) > 1e9:
            return x
        y: Tensor = self.layer(x * self.gain)
        return y


def test_a_parameter_of_no_product_is_a_row_with_its_reason() -> None:
    model, x = Scaled().eval(), torch.randn(4, 32)
    quantized = octavo.quantize_model(model, "int8-weight-only", calibration=[(x,)])
    row = next(row for row in quantized.coverage.rows if row.weight == "gain")
    assert row.op is None
    assert row.bits == 32
    assert "read by mul" in row.reason


def test_writing_into_a_quantized_parameter_is_refused() -> None:
    model, ids = Tied().eval(), torch.arange(14).view(2, 7)
    quantized = octavo.quantize_model(model, "int8-weight-only", calibration=[(ids,)])
    table: Any = quantized.model.table
    assert table.shape == (48, 32)
    assert table.dtype == torch.float32
    assert error(table + 0, model.table.detach()) < 0.02
    with pytest.raises(octavo.OctavoError, match="held in few bits"):
        table.mul_(2)
    with pytest.raises(octavo.OctavoError, match="held in few bits"):
        table[0] = 1
