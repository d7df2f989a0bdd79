"""Weights held in few bits, decoded a block of rows at a time by looking up words of codes."""

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
_WIDTHS = (2, 3, 4, 6)
"""Bits of codes that are stored in fewer than a byte each."""
_WORD_BITS = 12
"""Bits of a word of codes of 3 and 6 bits, which fill no byte: two words lie in three bytes."""


class StoredWeight(nn.Module):
    """A matrix (rows, features) in few bits: 2, 3, 4, 6 or 8 a code; codes of 5 and 7 bits take 8.

    The codes of a row are one stream of bits, the first code in the lowest ones. What a look-up
    decodes is a byte of it where that holds whole codes, and for 3 and 6 bits a word of 12 bits,
    two of which lie in three bytes.

    Args:
        weight: What the core quantized; its channel axis is the rows.
        transposed: The tensor is stored as (features, rows).

    Attributes:
        left: (rows, rank) and
        right: (rank, features): their product is added to what the codes stand for; None where the
            weight has no repair.
    """

    codes: Tensor
    scale: Tensor
    offset: Tensor | None
    table: Tensor
    left: Tensor | None
    right: Tensor | None

    def __init__(self, weight: QuantizedTensor, *, transposed: bool = False) -> None:
        super().__init__()
        spec = weight.params.spec
        self.spec = spec
        rows = weight.shape[0]
        features = prod(weight.shape[1:])
        self.rows = features if transposed else rows
        self.features = rows if transposed else features
        self.width = _width(spec.bits)
        is_signed = _is_signed(spec)
        # Bytes are the codes as they are, in memory that they share with whoever else has them;
        # narrower codes count from the lowest.
        self.lowest = 0
        if is_signed and self.width < 8:
            self.lowest = -(2 ** (spec.bits - 1))
        codes = self._stored_codes(weight, transposed)
        self.register_buffer("codes", codes)
        scale = weight.params.scale.to(torch.float32)
        self.register_buffer("scale", _by_row(scale))
        offset = self._offset_of(weight, scale)
        self.register_buffer("offset", offset)
        table = _table(spec, self.lowest, self.width, is_signed)
        self.register_buffer("table", table.to(codes.device), persistent=False)
        repair = weight.repair
        self.register_buffer("left", None if repair is None else repair.left)
        self.register_buffer("right", None if repair is None else repair.right)

    def _stored_codes(self, weight: QuantizedTensor, transposed: bool) -> Tensor:
        rows = weight.shape[0]
        features = prod(weight.shape[1:])
        row_bits = features * self.width
        ends_whole = row_bits % _span(self.width) == 0
        if isinstance(weight, PackedTensor) and ends_whole and not transposed:
            shared: Tensor = weight.packed
            return shared.view(rows, -1)  # the same bytes; every candidate shares them
        codes: Tensor = weight.codes.reshape(rows, -1)
        if transposed:
            codes = codes.t().contiguous()
        if self.width == 8:
            return codes.view(torch.uint8)
        from_zero = codes - self.lowest
        return _packed(from_zero.to(torch.uint8), self.width)

    def _offset_of(self, weight: QuantizedTensor, scale: Tensor) -> Tensor | None:
        """Return what a code of zero stands for, shaped as the scales; None where all are zero."""
        zero_point: Tensor = weight.params.zero_point
        if not is_integer(self.spec):
            return None
        is_shifted = zero_point != 0
        if not bool(is_shifted.any()):
            return None
        steps = -zero_point.to(torch.float32)
        offset = steps * scale
        return offset.reshape(self.scale.shape)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        for tensor in self.buffers():
            forget(tensor)

    @property
    def group(self) -> int:
        """Features that share one scale."""
        groups = int(self.scale.shape[1])
        return self.features // groups

    def decode(self, codes: Tensor, rows: slice | Tensor) -> Tensor:
        """Return float32 values (n, features) of the packed codes (n, bytes) of some rows.

        Without the repair: :meth:`numbers` has it.
        """
        n = codes.shape[0]
        if self.width in (3, 6):
            words = _words(codes)
        else:
            words = codes.to(torch.int32)
        values = nn.functional.embedding(words, self.table)
        # Sizes are written out, since there may be no rows.
        width = words.shape[1] * self.table.shape[1]
        values = values.view(n, width)
        # What fills the last word of a row is no feature.
        values = values[:, : self.features]
        groups = self.scale.shape[1]
        form = (n, groups, self.group)
        if values.is_contiguous():
            grouped = values.view(form)
        else:
            grouped = values.reshape(form)
        scale = self.scale
        offset = self.offset
        if scale.shape[0] != 1:
            scale = scale[rows]
            offset = None if offset is None else offset[rows]
        by_group = scale[..., None]
        if offset is None:
            decoded = grouped.mul_(by_group)
        else:
            decoded = torch.addcmul(offset[..., None], grouped, by_group)
        return decoded.view(n, self.features)

    def numbers(self, codes: Tensor, rows: slice | Tensor) -> Tensor:
        """Return what :meth:`decode` returns, with the repair of those rows."""
        decoded = self.decode(codes, rows)
        if self.left is None or self.right is None:
            return decoded
        return torch.addmm(decoded, self.left[rows].float(), self.right.float())

    def repaired(self, x: Tensor) -> Tensor | None:
        """Return what the repair alone makes of inputs (..., features), in their type; None where
        there is none."""
        if self.left is None or self.right is None:
            return None
        narrow = nn.functional.linear(x, self.right.to(x.dtype))
        return nn.functional.linear(narrow, self.left.to(x.dtype))

    def whole(self) -> Tensor:
        """Return the whole matrix, float32 (rows, features)."""
        every_row = slice(0, self.rows)
        return self.numbers(self.codes, every_row)

    def blocks(self, step: int = 0) -> list[slice]:
        """Return the rows of the blocks that are decoded one at a time.

        Args:
            step: Rows of a block; 0 for :attr:`step`.
        """
        step = step or self.step
        found = []
        for first in range(0, self.rows, step):
            end = min(first + step, self.rows)
            found.append(slice(first, end))
        return found

    @property
    def step(self) -> int:
        """Rows of a block."""
        fitting = _BLOCK // max(1, self.features)
        return max(1, min(self.rows, fitting))

    def extra_repr(self) -> str:
        """Return shape and format."""
        repair = "" if self.left is None else f", repair of rank {self.left.shape[1]}"
        return f"({self.rows}, {self.features}), {self.spec}{repair}"


def _width(bits: int) -> int:
    """Return in how many bits codes of so many are stored: bytes hold those without a width."""
    return bits if bits in _WIDTHS else 8


def _is_signed(spec: QuantSpec) -> bool:
    if spec.dtype == "mxint8":
        return True
    is_unsigned = spec.dtype.startswith("u")
    return is_integer(spec) and not is_unsigned


def _by_row(scale: Tensor) -> Tensor:
    """Return one row of scales for each row of the matrix, or one for all: (1 or rows, groups)."""
    if scale.ndim == 0:
        return scale.reshape(1, 1)
    return scale.reshape(scale.shape[0], -1)


def _span(width: int) -> int:
    """Return after how many bits a row may end: whole bytes, or pairs of words."""
    return 2 * _WORD_BITS if width in (3, 6) else 8


def _packed(codes: Tensor, width: int) -> Tensor:
    """Pack rows of unsigned codes (uint8) of 2, 3, 4 or 6 bits.

    Zeros fill the last byte or pair of words.
    """
    per_span = _span(width) // width
    missing = -codes.shape[1] % per_span
    filled = nn.functional.pad(codes, (0, missing))
    packed: Tensor = pack(filled, width)
    return packed


def _words(codes: Tensor) -> Tensor:
    """Return the 12-bit words of rows of bytes, int32."""
    rows = codes.shape[0]
    pairs = codes.shape[1] // 3
    octets = codes.view(rows, pairs, 3)
    middle = octets[..., 1]
    # 16 bits hold a word; half as much memory goes through the cache as with 32.
    first = (middle & 15).to(torch.int16)
    first.mul_(256)
    first.add_(octets[..., 0])
    second = octets[..., 2].to(torch.int16)
    second.mul_(16)
    second.add_(middle >> 4)
    words = torch.stack((first, second), -1)
    flat = words.view(rows, 2 * pairs)
    return flat.to(torch.int32)


@cache
@torch.inference_mode(False)
def _table(spec: QuantSpec, lowest: int, width: int, is_signed: bool) -> Tensor:
    """Return the numbers that each word of codes stands for, scale 1; one table for all layers.

    It is float32 (256 or 4096, codes in a word).
    """
    if width == 8 and is_signed:
        every_byte = torch.arange(256).to(torch.int8)
        return every_byte.float().reshape(-1, 1)
    codes = _codes_of_words(width) + lowest
    if is_integer(spec) or spec.dtype == "mxint8":
        return codes.float()
    one = torch.ones(())
    zero = torch.zeros((), dtype=torch.int32)
    largest = 2**spec.bits - 1
    valid = codes.clamp(max=largest).to(torch.uint8)
    numbers: Tensor = decode_values(valid, one, zero, spec)
    return numbers.float().nan_to_num(0.0).contiguous()


def _codes_of_words(width: int) -> Tensor:
    """Return the unsigned codes in each word: (words, codes in a word)."""
    bits = _WORD_BITS if width in (3, 6) else 8
    words = torch.arange(2**bits)
    mask = 2**width - 1
    parts = []
    for place in range(bits // width):
        shifted = words >> (width * place)
        parts.append(shifted & mask)
    return torch.stack(parts, 1)
