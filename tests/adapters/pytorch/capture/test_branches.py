"""Models whose branches follow sizes: each branch that calibration took is quantized, and what it
never took stays float and is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import octavo
from octavo.core.values.graph import UNREACHED

SCHEMES = ("int8-static", "int8-dynamic")


class BySize(nn.Module):
    """Sequences longer than four take another layer; the loop runs as often as the width says."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.ModuleList([nn.Linear(32, 32) for _ in range(2)])
        self.long, self.short, self.head = (
            nn.Linear(32, 32),
            nn.Linear(32, 32),
            nn.Linear(32, 8),
        )

    def forward(self, x: Tensor) -> Tensor:
        for i in range(x.shape[2] // 16):
            x = self.steps[i](x).relu()
        x = self.long(x).relu() if x.shape[1] > 4 else self.short(x).abs()
        y: Tensor = self.head(x)
        return y


class Scales(nn.Module):
    """As CrossViT: each branch resizes images that are not of its own size."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = (16, 12)
        self.patch = nn.ModuleList([nn.Conv2d(3, 8, 4, 4), nn.Conv2d(3, 8, 3, 3)])
        self.norm = nn.ModuleList([nn.BatchNorm2d(8), nn.BatchNorm2d(8)])
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        found = []
        for size, patch, norm in zip(self.sizes, self.patch, self.norm, strict=True):
            y = x
            if y.shape[-1] != size or y.shape[-2] != size:
                y = F.interpolate(
                    y, size=(size, size), mode="bicubic", align_corners=False
                )
            found.append(norm(patch(y)).relu().flatten(2).mean(-1))
        z: Tensor = self.head(torch.cat(found, 1))
        return z


class ByType(nn.Module):
    """What symbolic tracing does not see: a proxy is no tensor, and its branch is the other one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 8), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.a(x) if isinstance(x, Tensor) and x.shape[0] > 2 else self.b(x)
        return y


class ActOrNot(nn.Module):
    """A layer that is followed by its activation function in some batches only."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.act, self.b = nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        if x.shape[0] > 2:
            h = self.act(h)
        y: Tensor = self.b(h)
        return y


class ByValue(nn.Module):
    """A branch that numbers decide, so that no shape tells of it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x) if bool(x.mean() > 0) else self.b(x)
        y: Tensor = self.c(h.relu())
        return y


def run(model: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        y: Tensor = model(x)
    return y.flatten().double()


def follows(found: Tensor, expected: Tensor) -> bool:
    return float(F.cosine_similarity(found, expected, dim=0)) > 0.98


def some(*shape: int) -> Tensor:
    """Numbers whose range few batches show."""
    return torch.rand(*shape) * 2 - 1


def made(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind().eval()


def modes(quantized: octavo.Quantized) -> dict[str, str]:
    return {name: line.applied.mode for name, line in quantized.ledger.items()}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("lengths", [(3, 7, 4, 9), (9, 3, 2)])
def test_both_branches_are_calibrated_and_quantized(
    lengths: tuple[int, ...], scheme: str, tmp_path: Path
) -> None:
    model = made(BySize)
    quantized = octavo.quantize_model(
        model, scheme, calibration=[(some(4, n, 32),) for n in lengths]
    )
    mode = scheme.removeprefix("int8-")
    assert modes(quantized) == dict.fromkeys(
        ("steps.0", "steps.1", "long", "short", "head"), mode
    )
    again = octavo.load(quantized.save(tmp_path / "saved"), model=BySize)
    for n in (2, 4, 5, 11):
        x = some(3, n, 32)
        assert follows(run(quantized.model, x), run(model, x))
        assert torch.equal(run(again, x), run(quantized.model, x))


def test_how_often_a_branch_was_taken_is_told() -> None:
    quantized = octavo.quantize_model(
        made(BySize),
        "int8-static",
        calibration=[(some(4, n, 32),) for n in (3, 7, 4, 9, 8)],
    )
    assert "called in 3 of 5 calibration batches" in quantized.ledger["long"].reason
    assert "called in 2 of 5 calibration batches" in quantized.ledger["short"].reason
    assert not any(
        "calibration batches" in quantized.ledger[name].reason
        for name in ("steps.0", "head")
    )


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_branch_that_calibration_never_took_stays_float_and_is_said(
    scheme: str,
) -> None:
    model = made(BySize)
    quantized = octavo.quantize_model(
        model, scheme, calibration=[(some(4, n, 32),) for n in (7, 9)]
    )
    assert quantized.ledger["short"].reason == UNREACHED
    assert quantized.ledger["short"].applied.is_float
    assert any(UNREACHED in note and "short" in note for note in quantized.notes)
    assert quantized.coverage is not None
    assert {
        row.weight: row.reason for row in quantized.coverage.rows if row.is_float
    } == {"short.weight": UNREACHED}
    assert quantized.coverage.kept == 32 * 32
    for n in (3, 8):
        x = some(4, n, 32)
        assert follows(run(quantized.model, x), run(model, x))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("sizes", [(16, 16), (12, 12), (20, 16, 12), (9, 14)])
def test_branches_that_resize(sizes: tuple[int, ...], scheme: str) -> None:
    model = made(Scales)
    quantized = octavo.quantize_model(
        model, scheme, calibration=[(some(2, 3, n, n),) for n in sizes]
    )
    assert len(quantized.ledger) == 3
    assert not any(line.applied.is_float for line in quantized.ledger.values())
    for n in (12, 16, 24):
        x = some(3, 3, n, n)
        assert follows(run(quantized.model, x), run(model, x))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("rows", [(4, 2), (2, 4), (1, 5, 3)])
def test_a_branch_that_tracing_does_not_see(rows: tuple[int, ...], scheme: str) -> None:
    model = made(ByType)
    quantized = octavo.quantize_model(
        model, scheme, calibration=[(some(n, 16),) for n in rows]
    )
    assert modes(quantized) == dict.fromkeys("ab", scheme.removeprefix("int8-"))
    for n in (1, 2, 3, 8):
        x = some(n, 16)
        assert follows(run(quantized.model, x), run(model, x))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("rows", [(4, 2), (2, 4)])
def test_what_follows_in_some_batches_only_is_not_fused(
    rows: tuple[int, ...], scheme: str
) -> None:
    model = made(ActOrNot)
    quantized = octavo.quantize_model(
        model, scheme, calibration=[(some(n, 16),) for n in rows]
    )
    for n in (1, 2, 3, 8):
        x = some(n, 16)
        assert follows(run(quantized.model, x), run(model, x))


def test_a_branch_that_numbers_decide() -> None:
    model = made(ByValue)
    up, down = torch.rand(4, 16), -torch.rand(4, 16)
    only = octavo.quantize_model(model, "int8-static", calibration=[(up,), (up,)])
    assert only.ledger["b"].reason == UNREACHED
    both = octavo.quantize_model(
        model, "int8-static", calibration=[(up,), (down,), (up,)]
    )
    for quantized in (only, both):
        for x in (up, down):
            assert follows(run(quantized.model, x), run(model, x))


def test_an_export_is_free_in_the_axes_that_calibration_varies() -> None:
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3)
    ).eval()
    batches = [(some(2, 3, 8 + 2 * i, 9),) for i in range(3)]
    quantized = octavo.quantize_model(
        model, "int8-static", calibration=batches, backend="onnx"
    )
    for height in (8, 12, 30):
        x = some(2, 3, height, 9)
        (y,) = quantized.candidate.run((x,))
        assert follows(torch.from_numpy(y).flatten().double(), run(model, x))
