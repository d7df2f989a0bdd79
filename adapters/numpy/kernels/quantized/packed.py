"""Weights that stay packed at their bit width, unpacked inside the operator that reads them.

A code of up to eight bits is looked up in a table of its numbers (integers, nf4, narrow floats
alike), the zero point is taken off and the scale applied. Where the width divides eight, one
look-up turns a byte into all of its numbers.

Scales lie in the file in the format that the spec names, zero points at the codes' width. Both are
widened once, when a weight is first read. Files of format 1 hold them wide, and the table beside
them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from octavo.adapters.numpy.graph import Array
from octavo.adapters.numpy.kernels.identity import IdentityCache
from octavo.adapters.numpy.kernels.parallel import spread
from octavo.adapters.numpy.kernels.registry import Build, Kernel, compiled
from octavo.core.numerics.affine import QuantParams
from octavo.core.numerics.codec import decode
from octavo.core.numerics.packing import pack, unpack
from octavo.core.numerics.scales import restored_scale
from octavo.core.values.scheme import QuantSpec

_tables = IdentityCache()
_PIECE = 1 << 18  # elements that one piece unpacks


@dataclass(frozen=True, slots=True)
class _Layout:
    """How rows are packed.

    Attributes:
        bits: Width of a code.
        columns: Neighbours that share a scale; 0 for a whole row.
        features: Numbers in a row.
        dtype: What a code is, by its name in a spec; '' where the file has the table.
        rows: Of codes that are one stream of bits; 0 where each row has bytes of its own.
        scale_dtype: What is not told by the type of the array of scales: ``bfloat16`` (halves of
            float32, as uint16) or ``uint8`` (codes over a second level).
    """

    bits: int
    columns: int
    features: int
    dtype: str = ""
    scale_dtype: str = ""
    rows: int = 0

    @classmethod
    def read(cls, build: Build, features: int) -> _Layout:
        """Return the layout that a node's attributes say."""
        return cls(
            build.get("bits", 8),
            build.get("columns", 0),
            features,
            build.get("dtype", ""),
            build.get("scale_dtype", ""),
            build.get("rows", 0),
        )


class _Wide(NamedTuple):
    """What a weight's codes are read with.

    Attributes:
        codes: uint8, (rows, bytes).
        scale: float32.
        zero: Whole numbers of the scale's shape; None where all are zero.
        table: The number that each code stands for, float32.
    """

    codes: Array
    scale: Array
    zero: Array | None
    table: Array


@cache
def code_table(dtype: str) -> Array:
    """Return the number of each bit pattern of a code, before zero point and scale; float32."""
    spec = QuantSpec(dtype=dtype)
    patterns = np.arange(2**spec.bits, dtype=np.uint8)
    if dtype.startswith("int"):
        # Two's complement: flipping the sign bit and taking it off reads the same bits with a sign.
        sign = 1 << spec.bits - 1
        patterns = ((patterns.astype(np.int16) ^ sign) - sign).astype(np.int8)
    unit = QuantParams(np.ones((), np.float32), np.zeros((), np.int32), spec)
    return np.asarray(decode(patterns, unit), np.float32)


def _wide(
    layout: _Layout,
    packed: Array,
    scale: Array,
    zero: Array | None,
    table: Array | None,
    steps: Array | None,
    offsets: Array | None,
) -> _Wide:
    """Return a weight's scales, zero points and table; made once while its codes live."""

    def make() -> _Wide:
        wide = scale
        if layout.scale_dtype == "uint8":
            wide = restored_scale(scale, steps, offsets)
        elif layout.scale_dtype == "bfloat16":
            wide = (scale.astype(np.uint32) << 16).view(np.float32)
        wide = np.asarray(wide, np.float32)
        if table is not None:
            return _Wide(packed, wide, zero, table)
        codes = packed
        if layout.rows:
            flat = unpack(packed, layout.bits, layout.rows * layout.features)
            codes = pack(flat.reshape(layout.rows, layout.features), layout.bits)
        whole = None
        if zero is not None:
            signed = layout.dtype.startswith("int")
            whole = unpack(zero, layout.bits, wide.size, signed=signed)
            whole = whole.reshape(wide.shape)
        return _Wide(codes, wide, whole, code_table(layout.dtype))

    found: _Wide = _tables.get(packed, layout, make)
    return found


def byte_table(numbers: Array, bits: int) -> Array:
    """Return the numbers that each byte holds, float32 (256, 8 / bits), lowest bits first."""
    shifts = np.arange(8 // bits) * bits
    every_byte = np.arange(256)[:, None]
    codes = (every_byte >> shifts) & (2**bits - 1)
    return np.ascontiguousarray(numbers.astype(np.float32)[codes])


def numbers_of(packed: Array, table: Array, bits: int, features: int) -> Array:
    """Return the numbers of packed rows, float32 (rows, features)."""
    if 8 % bits:
        return np.asarray(np.take(table, unpack(packed, bits, features)))
    wide = _tables.get(table, bits, lambda: byte_table(table, bits))
    numbers = np.take(wide, packed, axis=0).reshape(packed.shape[0], -1)
    # The last byte of a row may hold more numbers than are left.
    return np.asarray(numbers[:, :features])


def scaled(numbers: Array, scale: Array, zero: Array | None, columns: int) -> Array:
    """Take zero points off and apply scales, in place where it can be.

    Args:
        numbers: (rows, features).
        scale: One, one a row, or (rows, groups).
        zero: float32, of the scale's shape; None where all are zero.
        columns: Neighbours that share a scale; 0 for a whole row.
    """
    if not numbers.flags.writeable or not numbers.flags.c_contiguous:
        numbers = np.array(numbers)
    rows, features = numbers.shape
    if columns and features % columns == 0:
        grouped = numbers.reshape(rows, -1, columns)
        if zero is not None:
            grouped -= zero.reshape(rows, -1, 1)
        grouped *= scale.reshape(rows, -1, 1)
        return numbers
    if zero is not None:
        numbers -= _for_each_number(zero, numbers.shape, columns)
    numbers *= _for_each_number(scale, numbers.shape, columns)
    return numbers


def _for_each_number(values: Array, shape: tuple[int, ...], columns: int) -> Array:
    """Return values so that they broadcast against (rows, features)."""
    if columns:
        rows, features = shape
        return np.repeat(values.reshape(rows, -1), columns, axis=1)[:, :features]
    return values.reshape(-1, 1) if values.ndim else values


def _unpacked(wide: _Wide, where: Any, layout: _Layout) -> Array:
    """Return chosen rows as float32 (rows, features)."""
    numbers = numbers_of(wide.codes[where], wide.table, layout.bits, layout.features)
    scale, zero = wide.scale, wide.zero
    if scale.ndim:  # one or several a row
        scale = scale[where]
        zero = None if zero is None else zero[where]
    if zero is not None:
        zero = zero.astype(np.float32)
    return scaled(numbers, scale, zero, layout.columns)


@compiled("octavo.Dequantize", empty=True)
def dequantize(build: Build) -> Kernel:
    """(packed codes, scale, zero point, table, steps, offsets) -> the float32 weight.

    ``shape`` is the weight's; rows are its channels along ``axis``; codes are ``bits`` wide;
    ``columns`` neighbours share a scale. Zero point and table may be left out; steps and offsets
    are the second level of scales in uint8.
    """
    shape = tuple(build.get("shape", ()))
    axis = build.get("axis", 0)
    moved = (shape[axis], *shape[:axis], *shape[axis + 1 :])
    features = math.prod(moved[1:])
    layout = _Layout.read(build, features)
    step = max(1, _PIECE // max(1, features))

    def run(
        packed: Array,
        scale: Array,
        zero: Array | None = None,
        table: Array | None = None,
        steps: Array | None = None,
        offsets: Array | None = None,
        *,
        empty: Any,
    ) -> Array:
        wide = _wide(layout, packed, scale, zero, table, steps, offsets)
        rows = wide.codes.shape[0]
        out: Array = empty((rows, features), np.float32)

        def work(i: int) -> None:
            start = i * step
            part = slice(start, start + step)
            out[part] = _unpacked(wide, part, layout)

        spread(-(-rows // step), work, build.threads)
        return np.moveaxis(out.reshape(moved), 0, axis)

    return run


@compiled("octavo.DequantizeRows")
def dequantize_rows(build: Build) -> Kernel:
    """An embedding: the rows that the indices name, unpacked.

    (packed codes, scale, zero point, table, indices, steps, offsets) -> (indices..., features).
    """
    features = build.get("features", 0)
    layout = _Layout.read(build, features)

    def run(
        packed: Array,
        scale: Array,
        zero: Array | None,
        table: Array | None,
        indices: Array,
        steps: Array | None = None,
        offsets: Array | None = None,
    ) -> Array:
        wide = _wide(layout, packed, scale, zero, table, steps, offsets)
        rows = _unpacked(wide, indices.reshape(-1), layout)
        return rows.reshape(*indices.shape, features)

    return run
