"""A weight as whole numbers, in the one form from which checkpoint formats lay theirs out."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from octavo.core.numerics.affine import integer_range
from octavo.core.numerics.packing import pack
from octavo.core.numerics.tensor import QuantizedTensor

Tensor = torch.Tensor


@dataclass(frozen=True)
class IntegerMatrix:
    """A weight (outputs, inputs) as unsigned codes, group by group of inputs.

    value = scale * (code - zero_point).

    Attributes:
        codes: 0 to 2**bits - 1, int32.
        scale: float32 (outputs, groups); (1, 1) for one scale.
        zero_point: int32, the same shape.
        bits: Width of a code.
        symmetric: Every zero point is the middle code.
        group: Inputs that share a scale; None for whole rows.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor
    bits: int
    symmetric: bool
    group: int | None

    @classmethod
    def of(cls, weight: QuantizedTensor, *, transposed: bool = False) -> IntegerMatrix:
        """Return the matrix of an integer weight.

        Args:
            weight: Shape (outputs, inputs).
            transposed: It is stored as (inputs, outputs).
        """
        params, spec = weight.params, weight.params.spec
        # Signed codes are shifted up, and their zero points with them.
        is_signed = integer_range(spec)[0] < 0
        middle = 2 ** (spec.bits - 1) if is_signed else 0
        rows = 1 if params.scale.ndim == 0 else params.scale.shape[0]
        scale = params.scale.reshape(rows, -1)
        zero_point = params.zero_point.reshape(rows, -1) + middle
        stored = weight.codes.t() if transposed else weight.codes
        codes = stored.to(torch.int32) + middle
        return cls(
            codes.cpu(),
            scale.float().cpu(),
            zero_point.to(torch.int32).cpu(),
            spec.bits,
            spec.symmetric,
            spec.group_size,
        )

    @property
    def has_one_scale(self) -> bool:
        """True where one row of scales stands for all outputs."""
        return self.scale.shape[0] == 1

    def rows(self, part: slice) -> IntegerMatrix:
        """Return some of the outputs as a matrix of their own."""
        codes = self.codes[part]
        if self.has_one_scale:
            return replace(self, codes=codes)
        own_scale, own_zeros = self.scale[part], self.zero_point[part]
        return replace(self, codes=codes, scale=own_scale, zero_point=own_zeros)


def words(codes: Tensor, bits: int) -> Tensor:
    """Pack unsigned codes along the last axis into int32 words as one stream of bits.

    The first code is lowest; zeros fill the last word.
    """
    octets = pack(codes, bits)
    missing = -octets.shape[-1] % 4
    padded = nn.functional.pad(octets, (0, missing)).contiguous()
    return padded.view(torch.int32)
