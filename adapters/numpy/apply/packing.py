"""Weights as the kernels read them: codes, scales and zero points."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from octavo.adapters.numpy.graph import Array
from octavo.core.numerics.affine import QuantParams
from octavo.core.numerics.layout import to_matrix
from octavo.core.numerics.packing import pack as pack_bits
from octavo.core.numerics.scales import held_by_float16
from octavo.core.numerics.tensor import QuantizedTensor
from octavo.core.values.sizes import block_shape, is_grouped


@dataclass(frozen=True, slots=True, eq=False)
class PackedWeight:
    """A weight of an integer operator.

    Attributes:
        codes: As the kernel reads them.
        scale: float32.
        zero: Of the codes' type; None where all are zero.
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
    # An operator without them has nothing to take off.
    if not zero.any() and params.spec.symmetric:
        return None
    return zero.astype(np.uint8 if params.spec.dtype.startswith("u") else np.int8)


@dataclass(frozen=True, slots=True, eq=False)
class PackedRows:
    """A weight as packed rows, one for each channel; see :mod:`.kernels.quantized.packed`.

    Attributes:
        codes: uint8, (rows, bytes); one stream of bits, where a row is no whole bytes.
        scale: As the file holds them: float32, float16, the upper halves of float32 as uint16
            (bfloat16, which NumPy has not), or uint8 codes over a second level.
        zero: Packed as codes are, one stream of bits; None where all are zero.
        steps: float32 of the second level, one for each block; None where there is none.
        offsets: float32 of the second level.
        attributes: What an operator has to know to read them.
    """

    codes: Array
    scale: Array
    zero: Array | None
    steps: Array | None
    offsets: Array | None
    attributes: Mapping[str, Any]


def pack_rows(weight: QuantizedTensor, axis: int) -> PackedRows:
    """Pack a weight at its bit width, row by row; rows are its channels along ``axis``."""
    params = weight.params
    spec = params.spec
    attributes: dict[str, Any] = {
        "bits": spec.bits,
        "columns": block_shape(spec)[1] if is_grouped(spec) else 0,
        "dtype": spec.dtype,
    }
    scale = np.asarray(params.scale, np.float32)
    steps = offsets = None
    is_half = spec.scale_dtype == "float16" and held_by_float16(scale)
    if is_half:
        scale = scale.astype(np.float16)
    elif spec.scale_dtype in ("float16", "bfloat16"):
        # The scales are rounded already: their lower halves are zero.
        scale = (scale.view(np.uint32) >> 16).astype(np.uint16)
        attributes["scale_dtype"] = "bfloat16"
    elif spec.scale_dtype == "uint8":
        assert weight.extra is not None
        scale = np.asarray(weight.extra["scale_codes"])
        steps = np.asarray(weight.extra["scale_scale"])
        offsets = np.asarray(weight.extra["scale_offset"])
        attributes["scale_dtype"] = "uint8"
    zero = _zero_points(params)
    if zero is not None:
        zero = np.asarray(pack_bits(zero.reshape(-1), spec.bits))
    codes = np.asarray(to_matrix(weight.codes, axis))
    rows, features = codes.shape
    if features * spec.bits % 8:
        # Rows that end within a byte are one stream in the file, and taken apart when it is read.
        attributes["rows"] = rows
        codes = codes.reshape(-1)
    packed = np.asarray(pack_bits(codes, spec.bits))
    return PackedRows(packed, scale, zero, steps, offsets, attributes)
