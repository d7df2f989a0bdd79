"""The product by weights of 4 bits, decoded inside the kernel.

A function for eager layers and an operator for compiled programs.
"""

from __future__ import annotations

import torch

from . import accelerators
from .layouts import content, layout
from .operators import register

Tensor = torch.Tensor


def int4_linear(
    x: Tensor, codes: Tensor, scale: Tensor, offset: Tensor | None, lowest: int
) -> Tensor:
    """Return x W^T in bfloat16.

    Args:
        x: Float values (..., inputs).
        codes: uint8 (outputs, inputs / 2), the first of two 4-bit codes in the lower bits.
        scale: float32 (outputs, groups).
        offset: float32 (outputs, groups) that is added to code times scale, or None for 0.
        lowest: What code 0 stands for.
    """
    product = accelerators.on(codes.device)
    outputs, groups = scale.shape

    def pack() -> tuple[Tensor, Tensor]:
        low, high = codes & 15, codes >> 4
        each = torch.stack([low, high], -1).view(outputs, -1)
        # The kernel computes (code - 8) * scale + zero.
        zero = scale * (8 + lowest)
        if offset is not None:
            zero = offset + zero
        packed: tuple[Tensor, Tensor] = product.pack_int4(each.int(), scale, zero)
        return packed

    key = ("int4", content(scale), content(offset))
    packed, scales = layout(codes, key, pack)
    inputs = x.shape[-1]
    rows = x.reshape(-1, inputs)
    y: Tensor = product.linear_int4(rows, packed, inputs // groups, scales)
    return y.view(*x.shape[:-1], outputs)


def _int4_form(x: Tensor, codes: Tensor, *_: object) -> Tensor:
    return x.new_empty((*x.shape[:-1], codes.shape[0]), dtype=torch.bfloat16)


register(
    "int4_linear(Tensor x, Tensor codes, Tensor scale, Tensor? offset, int lowest) -> Tensor",
    int4_linear,
    _int4_form,
)
