"""Weights as the kernels read them: codes, scales and zero points."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from octavo.adapters.numpy.graph import Array
from octavo.core.numerics.affine import QuantParams
from octavo.core.numerics.codec import decode
from octavo.core.numerics.layout import to_matrix
from octavo.core.numerics.packing import pack as pack_bits
from octavo.core.numerics.tensor import QuantizedTensor
from octavo.core.values.scheme import QuantSpec
from octavo.core.values.sizes import block_shape, is_grouped


@dataclass(frozen=True, slots=True, eq=False)
class PackedWeight:
    """A weight of an integer operator.

    Attributes:
        codes: As the kernel reads them.
        scale: float32.
        zero: int16; None where all are zero.
    """

    codes: Array
    scale: Array
    zero: Array | None


def pack(weight: QuantizedTensor, layout: str) -> PackedWeight:
    """Return a weight as an integer operator reads it.

    A convolution's (O, C / g, kernel...) becomes (kernel..., C / g, O); a matrix stays as it is.

    Args:
        weight: Codes in the model's own shape.
        layout: ``conv`` or ``gemm``.
    """
    codes = np.asarray(weight.codes)
    if layout == "conv":
        kernel_axes = range(2, codes.ndim)
        codes = np.ascontiguousarray(codes.transpose(*kernel_axes, 1, 0))
    params = weight.params
    return PackedWeight(
        codes, np.asarray(params.scale, np.float32), _zero_points(params)
    )


def _zero_points(params: QuantParams) -> Array | None:
    zero = np.asarray(params.zero_point)
    # int16 holds those of uint8, and an operator without them has nothing to take off.
    return zero.astype(np.int16) if zero.any() else None


@dataclass(frozen=True, slots=True, eq=False)
class PackedRows:
    """A weight as packed rows, one for each channel; see :mod:`.kernels.quantized.packed`.

    Attributes:
        codes: uint8, (rows, bytes).
        scale: float32.
        zero: int16; None where all are zero.
        table: The number that each code stands for, float32.
        bits: Width of a code.
        columns: Neighbours that share a scale; 0 for a whole row.
    """

    codes: Array
    scale: Array
    zero: Array | None
    table: Array
    bits: int
    columns: int


def pack_rows(weight: QuantizedTensor, axis: int) -> PackedRows:
    """Pack a weight at its bit width, row by row; rows are its channels along ``axis``."""
    params = weight.params
    spec = params.spec
    codes = np.asarray(to_matrix(weight.codes, axis))
    return PackedRows(
        np.asarray(pack_bits(codes, spec.bits)),
        np.asarray(params.scale, np.float32),
        _zero_points(params),
        _table(spec, is_signed=codes.dtype == np.int8),
        spec.bits,
        block_shape(spec)[1] if is_grouped(spec) else 0,
    )


def _table(spec: QuantSpec, *, is_signed: bool) -> Array:
    """Return the number of each bit pattern of a code, before zero point and scale."""
    patterns = np.arange(2**spec.bits, dtype=np.uint8)
    if is_signed:
        # Two's complement: flipping the sign bit and taking it off reads the same bits with a sign.
        sign = 1 << spec.bits - 1
        patterns = ((patterns.astype(np.int16) ^ sign) - sign).astype(np.int8)
    per_tensor = spec.model_copy(update={"granularity": "tensor"})
    unit = QuantParams(np.ones((), np.float32), np.zeros((), np.int32), per_tensor)
    return np.asarray(decode(patterns, unit), np.float32)
