"""Weights that stay packed at their bit width, unpacked inside the operator that reads them.

A code of up to eight bits is looked up in a table of its numbers (integers, nf4, narrow floats
alike), the zero point is taken off and the scale applied. Where the width divides eight, one
look-up turns a byte into all of its numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from octavo.adapters.numpy.graph import Array
from octavo.adapters.numpy.kernels.identity import IdentityCache
from octavo.adapters.numpy.kernels.parallel import spread
from octavo.adapters.numpy.kernels.registry import Build, Kernel, compiled
from octavo.core.numerics.packing import unpack

_tables = IdentityCache()
_PIECE = 1 << 18  # elements that one piece unpacks


@dataclass(frozen=True, slots=True)
class _Layout:
    """How rows are packed.

    Attributes:
        bits: Width of a code.
        columns: Neighbours that share a scale; 0 for a whole row.
        features: Numbers in a row.
    """

    bits: int
    columns: int
    features: int


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


def _unpacked(
    packed: Array,
    scale: Array,
    zero: Array | None,
    table: Array,
    where: Any,
    layout: _Layout,
) -> Array:
    """Return chosen rows as float32 (rows, features)."""
    numbers = numbers_of(packed[where], table, layout.bits, layout.features)
    if scale.ndim:  # one or several a row
        scale = scale[where]
        zero = None if zero is None else zero[where]
    if zero is not None:
        zero = zero.astype(np.float32)
    return scaled(numbers, scale, zero, layout.columns)


@compiled("octavo.Dequantize", empty=True)
def dequantize(build: Build) -> Kernel:
    """(packed codes, scale, zero point, table) -> the float32 weight, in the model's own shape.

    ``shape`` is the weight's; rows are its channels along ``axis``; codes are ``bits`` wide;
    ``columns`` neighbours share a scale.
    """
    shape = tuple(build.get("shape", ()))
    axis = build.get("axis", 0)
    moved = (shape[axis], *shape[:axis], *shape[axis + 1 :])
    features = math.prod(moved[1:])
    layout = _Layout(build.get("bits", 8), build.get("columns", 0), features)
    step = max(1, _PIECE // max(1, features))

    def run(
        packed: Array, scale: Array, zero: Array | None, table: Array, *, empty: Any
    ) -> Array:
        rows = packed.shape[0]
        out: Array = empty((rows, features), np.float32)

        def work(i: int) -> None:
            start = i * step
            part = slice(start, start + step)
            out[part] = _unpacked(packed, scale, zero, table, part, layout)

        spread(-(-rows // step), work, build.threads)
        return np.moveaxis(out.reshape(moved), 0, axis)

    return run


@compiled("octavo.DequantizeRows")
def dequantize_rows(build: Build) -> Kernel:
    """An embedding: the rows that the indices name, unpacked.

    (packed codes, scale, zero point, table, indices) -> (indices..., features).
    """
    features = build.get("features", 0)
    layout = _Layout(build.get("bits", 8), build.get("columns", 0), features)

    def run(
        packed: Array, scale: Array, zero: Array | None, table: Array, indices: Array
    ) -> Array:
        rows = _unpacked(packed, scale, zero, table, indices.reshape(-1), layout)
        return rows.reshape(*indices.shape, features)

    return run
