"""``nn.MultiheadAttention`` with each of its options: every projection is quantized, and the
outputs follow the float module's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import octavo

Tensor = torch.Tensor


class Own(nn.MultiheadAttention):
    """A subclass that computes what its base computes."""


class Attends(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        kind, settings, self.asked, self.masked = OPTIONS[name]
        self.attention = kind(32, 4, **settings)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        masks: dict[str, Any] = {}
        if "padding" in self.masked:
            padding = torch.zeros(2, 7, dtype=torch.bool)
            padding[1, 5:] = True
            masks["key_padding_mask"] = padding
        if "later" in self.masked:
            masks["attn_mask"] = torch.triu(torch.ones(5, 7, dtype=torch.bool), 3)
        if "added" in self.masked:
            masks["attn_mask"] = torch.linspace(-2, 2, 35).view(5, 7)
        y, weights = self.attention(query, key, value, **self.asked, **masks)
        return y if weights is None else torch.cat([y.flatten(), weights.flatten()])


Option = tuple[
    type[nn.MultiheadAttention], dict[str, Any], dict[str, Any], tuple[str, ...]
]
FIRST = {"batch_first": True}
OPTIONS: dict[str, Option] = {
    "plain": (nn.MultiheadAttention, FIRST, {}, ()),
    "own widths": (nn.MultiheadAttention, {**FIRST, "kdim": 24, "vdim": 16}, {}, ("padding",)),
    "sequence first": (nn.MultiheadAttention, {}, {"need_weights": False}, ("later",)),
    "biases of keys": (nn.MultiheadAttention, {**FIRST, "add_bias_kv": True}, {}, ("added",)),
    "zeros": (nn.MultiheadAttention, {**FIRST, "add_zero_attn": True}, {}, ("padding", "later")),
    "no biases": (
        nn.MultiheadAttention, {**FIRST, "bias": False}, {"average_attn_weights": False}, (),
    ),
    "subclass": (Own, FIRST, {"need_weights": False}, ()),
}  # fmt: skip


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    return Attends(name).eval()


@pytest.mark.parametrize("scheme", ["int8-static", "int8-weight-only"])
@pytest.mark.parametrize("name", OPTIONS)
def test_every_projection_is_quantized(name: str, scheme: str, tmp_path: Path) -> None:
    model = made(name)
    settings = OPTIONS[name][1]
    widths = (32, settings.get("kdim", 32), settings.get("vdim", 32))
    batch = tuple(torch.randn(2, n, w) for n, w in zip((5, 7, 7), widths, strict=True))
    if "batch_first" not in settings:
        batch = tuple(t.transpose(0, 1).contiguous() for t in batch)
    with torch.no_grad():
        expected = model(*batch)
    quantized = octavo.quantize_model(model, scheme, calibration=[batch])
    left = {row.weight for row in quantized.coverage.rows if row.bits > 8}
    assert left <= {"attention.bias_k", "attention.bias_v"}
    got = quantized.model(*batch).detach()
    assert 0 < float((got - expected).norm() / expected.norm()) < 0.03
    quantized.save(tmp_path / "saved")
    again = octavo.load(tmp_path / "saved", model=made(name))(*batch).detach()
    torch.testing.assert_close(again, got, rtol=1e-5, atol=1e-6)
