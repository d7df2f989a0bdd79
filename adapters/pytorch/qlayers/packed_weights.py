"""Weights that are held in few bits and decoded a block of rows at a time, by looking up what a word of codes stands for."""

from __future__ import annotations

from functools import cache
from math import prod
from typing import Any

import torch
from torch import nn

from octavo.adapters.pytorch.kernels.layouts import forget
from octavo.core.numerics.affine import is_integer
from octavo.core.numerics.codec import decode_values
from octavo.core.numerics.packing import pack
from octavo.core.numerics.tensor import PackedTensor, QuantizedTensor
from octavo.core.values.scheme import QuantSpec

Tensor = torch.Tensor
_BLOCK = 2**18
"""Weight values decoded at a time: 1 MiB in float32, so that they stay in the cache."""
_WIDTHS = (2, 3, 4, 6, 8)


class StoredWeight(nn.Module):
    """A matrix (rows, features) in few bits: 2, 3, 4, 6 or 8 a code; codes of 5 and 7 bits take 8.

    The codes of a row are one stream of bits, the first code in the lowest ones. What a look-up decodes is a byte of it where that holds
    whole codes, and for 3 and 6 bits a word of 12 bits, two of which lie in three bytes.

    Args:
        weight: What the core quantized; its channel axis is the rows.
        transposed: The tensor is stored as (features, rows).
    """

    codes: Tensor
    scale: Tensor
    offset: Tensor | None
    table: Tensor

    def __init__(self, weight: QuantizedTensor, *, transposed: bool = False) -> None:
        super().__init__()
        spec = weight.params.spec
        rows, features = weight.shape[0], prod(weight.shape[1:])
        self.rows, self.features = (features, rows) if transposed else (rows, features)
        self.spec = spec
        self.width = next(w for w in _WIDTHS if w == spec.bits or w == 8)
        signed = spec.dtype == "mxint8" or (is_integer(spec) and not spec.dtype.startswith("u"))
        # Bytes are the codes as they are, in memory that they share with whoever else has them; narrower codes count from the lowest.
        self.lowest = -(2 ** (spec.bits - 1)) if signed and self.width < 8 else 0
        if (
            isinstance(weight, PackedTensor)
            and not transposed
            and features * self.width % _span(self.width) == 0
        ):
            packed = weight.packed.view(rows, -1)  # the same bytes; every candidate shares them
        else:
            codes = weight.codes.reshape(rows, -1)
            codes = codes.t().contiguous() if transposed else codes
            packed = (
                codes.view(torch.uint8)
                if self.width == 8
                else _packed((codes - self.lowest).to(torch.uint8), self.width)
            )
        self.register_buffer("codes", packed)
        scale = weight.params.scale.to(torch.float32)
        # One row of scales for each row of the matrix, or one row for all: (1 or rows, groups).
        self.register_buffer(
            "scale", scale.reshape(1, 1) if scale.ndim == 0 else scale.reshape(scale.shape[0], -1)
        )
        zero_point = weight.params.zero_point
        asymmetric = is_integer(spec) and bool((zero_point != 0).any())
        offset = (
            (-zero_point.to(torch.float32) * scale).reshape(self.scale.shape)
            if asymmetric
            else None
        )
        self.register_buffer("offset", offset)
        self.register_buffer(
            "table",
            _table(spec, self.lowest, self.width, signed).to(packed.device),
            persistent=False,
        )

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        for tensor in self.buffers():
            forget(tensor)

    @property
    def group(self) -> int:
        """Features that share one scale."""
        return self.features // int(self.scale.shape[1])

    def decode(self, codes: Tensor, rows: slice | Tensor) -> Tensor:
        """Return float32 values (n, features) of packed codes (n, bytes), which are those of ``rows``."""
        n = codes.shape[0]
        words = _words(codes) if self.width in (3, 6) else codes.to(torch.int32)
        # Sizes are written out, since there may be no rows.
        values = nn.functional.embedding(words, self.table).view(
            n, words.shape[1] * self.table.shape[1]
        )[:, : self.features]
        one = self.scale.shape[0] == 1
        form = (n, self.scale.shape[1], self.group)
        grouped = values.view(form) if values.is_contiguous() else values.reshape(form)
        scale = (self.scale if one else self.scale[rows])[..., None]
        if self.offset is None:
            return grouped.mul_(scale).view(n, self.features)
        offset = (self.offset if one else self.offset[rows])[..., None]
        return torch.addcmul(offset, grouped, scale).view(n, self.features)

    def whole(self) -> Tensor:
        """Return the whole matrix, float32 (rows, features)."""
        return self.decode(self.codes, slice(0, self.rows))

    def blocks(self) -> range:
        """Return the first rows of the blocks that are decoded one at a time."""
        return range(0, self.rows, self.step)

    @property
    def step(self) -> int:
        """Rows of a block."""
        return max(1, min(self.rows, _BLOCK // max(1, self.features)))

    def extra_repr(self) -> str:
        """Return shape and format."""
        return f"({self.rows}, {self.features}), {self.spec}"


def _span(width: int) -> int:
    """Return after how many bits a row may end: whole bytes, or pairs of words."""
    return 24 if width in (3, 6) else 8


def _packed(codes: Tensor, width: int) -> Tensor:
    """Pack rows of unsigned codes (uint8) of 2, 3, 4 or 6 bits; zeros fill the last byte or pair of words."""
    per = _span(width) // width
    whole = nn.functional.pad(codes, (0, -codes.shape[1] % per))
    packed: Tensor = pack(whole, width)
    return packed


def _words(codes: Tensor) -> Tensor:
    """Return the 12-bit words of rows of bytes, int32."""
    rows, pairs = codes.shape[0], codes.shape[1] // 3
    octets = codes.view(rows, pairs, 3)
    middle = octets[..., 1]
    # 16 bits hold a word; half as much memory goes through the cache as with 32.
    first = (middle & 15).to(torch.int16).mul_(256).add_(octets[..., 0])
    second = octets[..., 2].to(torch.int16).mul_(16).add_(middle >> 4)
    return torch.stack((first, second), -1).view(rows, 2 * pairs).to(torch.int32)


@cache
@torch.inference_mode(False)
def _table(spec: QuantSpec, lowest: int, width: int, signed: bool) -> Tensor:
    """Return the numbers that each word of codes stands for, scale 1: float32 (256 or 4096, codes in a word); one for all layers."""
    if width == 8 and signed:
        return torch.arange(256).to(torch.int8).float().reshape(-1, 1)
    room = 12 if width in (3, 6) else 8
    parts = (
        torch.stack(
            [(torch.arange(2**room) >> (width * i)) & (2**width - 1) for i in range(room // width)],
            1,
        )
        + lowest
    )
    if is_integer(spec) or spec.dtype == "mxint8":
        return parts.float()
    limit = 2**spec.bits - 1
    one, zero = torch.ones(()), torch.zeros((), dtype=torch.int32)
    numbers: Tensor = decode_values(parts.clamp(max=limit).to(torch.uint8), one, zero, spec)
    return numbers.float().nan_to_num(0.0).contiguous()
