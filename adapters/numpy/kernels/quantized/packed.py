"""Weights that stay packed at their bit width and are unpacked inside the operator that reads them.

A code of up to eight bits is looked up in a table of its numbers (integers, nf4, narrow floats alike), the zero point is taken off
and the scale applied. Where the width divides eight, one look-up turns a byte into all of its numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from octavo.adapters.numpy.kernels.identity import IdentityCache
from octavo.adapters.numpy.kernels.parallel import spread
from octavo.adapters.numpy.kernels.registry import Build, Kernel, compiled
from octavo.core.numerics.packing import unpack

_tables = IdentityCache()
_ROWS = 1 << 18  # elements that one piece unpacks


def byte_table(numbers: np.ndarray, bits: int) -> np.ndarray:
    """Return the numbers that each byte holds, float32 (256, 8 / bits), lowest bits first."""
    shifts = np.arange(8 // bits) * bits
    return np.ascontiguousarray(
        numbers.astype(np.float32)[(np.arange(256)[:, None] >> shifts) & (2**bits - 1)]
    )


def numbers_of(packed: np.ndarray, table: np.ndarray, bits: int, features: int) -> np.ndarray:
    """Return the numbers of packed rows, float32 (rows, features)."""
    if 8 % bits == 0:
        wide = _tables.get(table, bits, lambda: byte_table(table, bits))
        return np.asarray(np.take(wide, packed, axis=0).reshape(packed.shape[0], -1)[:, :features])
    return np.asarray(np.take(table, unpack(packed, bits, features)))


def scaled(
    numbers: np.ndarray, scale: np.ndarray, zero: np.ndarray | None, columns: int
) -> np.ndarray:
    """Take zero points off and apply scales, in place where it can be; ``columns`` neighbours share one (0: a whole row)."""
    if not numbers.flags.writeable or not numbers.flags.c_contiguous:
        numbers = np.array(numbers)
    rows, features = numbers.shape
    if columns and features % columns == 0:
        grouped = numbers.reshape(rows, -1, columns)
        if zero is not None:
            grouped -= zero.reshape(rows, -1, 1)
        grouped *= scale.reshape(rows, -1, 1)
        return numbers

    def spread_out(v: np.ndarray) -> np.ndarray:
        return (
            np.repeat(v.reshape(rows, -1), columns, axis=1)[:, :features]
            if columns
            else v.reshape(-1, 1)
            if v.ndim
            else v
        )

    if zero is not None:
        numbers -= spread_out(zero.astype(np.float32))
    numbers *= spread_out(scale)
    return numbers


@compiled("octavo.Dequantize", empty=True)
def dequantize(build: Build) -> Kernel:
    """(packed codes, scale, zero point, table) -> the float32 weight, in the model's own shape.

    ``shape`` is the weight's; rows are its channels along ``axis``; ``bits`` wide codes; ``columns`` neighbours share a scale.
    """
    shape, axis = tuple(build.get("shape", ())), build.get("axis", 0)
    bits, columns = build.get("bits", 8), build.get("columns", 0)
    moved = (shape[axis], *(s for i, s in enumerate(shape) if i != axis))

    def run(
        packed: np.ndarray,
        scale: np.ndarray,
        zero: np.ndarray | None,
        table: np.ndarray,
        *,
        empty: Any,
    ) -> np.ndarray:
        rows = packed.shape[0]
        features = int(np.prod(moved[1:]))
        out: np.ndarray = empty((rows, features), np.float32)
        step = max(1, _ROWS // max(1, features))

        def work(i: int) -> None:
            part = slice(i * step, (i + 1) * step)
            numbers = numbers_of(packed[part], table, bits, features)
            per_row = scale.ndim > 0
            z = None if zero is None else (zero[part] if per_row else zero).astype(np.float32)
            out[part] = scaled(numbers, scale[part] if per_row else scale, z, columns)

        spread(-(-rows // step), work, build.threads)
        return np.moveaxis(out.reshape(moved), 0, axis)

    return run


@compiled("octavo.DequantizeRows")
def dequantize_rows(build: Build) -> Kernel:
    """An embedding: the rows that the indices name, unpacked; (packed codes, scale, zero point, table, indices)."""
    features, bits, columns = (
        build.get("features", 0),
        build.get("bits", 8),
        build.get("columns", 0),
    )

    def run(
        packed: np.ndarray,
        scale: np.ndarray,
        zero: np.ndarray | None,
        table: np.ndarray,
        indices: np.ndarray,
    ) -> np.ndarray:
        flat = indices.reshape(-1)
        per_row = scale.ndim > 0
        z = None if zero is None else (zero[flat] if per_row else zero).astype(np.float32)
        rows = scaled(
            numbers_of(packed[flat], table, bits, features),
            scale[flat] if per_row else scale,
            z,
            columns,
        )
        return rows.reshape(*indices.shape, features)

    return run
