"""Exact integer products, carried by BLAS in float32.

A float32 holds every integer of magnitude up to 2**24 exactly. The product of two such integers,
and any sum of products in any order, with or without fused multiply-add, is therefore exact as long
as no partial sum can leave [-2**24, 2**24]. Every partial sum of sum_k x_k w_k is bounded by

    sum_k |x_k| |w_k| <= max|x| * sum_k |w_k|.

So the reduced axis is cut into blocks in which max|x| * sum |w| <= 2**24 for every column of w; a
block is one BLAS product without rounding, and blocks are added in float64, exact up to 2**53. With
the weights' own sums, and not their worst case, most layers are one block.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from octavo.adapters.numpy.graph import Array

EXACT = 1 << 24


def exact_blocks(weight: Array, largest: int) -> tuple[int, ...]:
    """Cut the reduced axis so that every block's sums are exact in float32.

    Args:
        weight: Integers, zero point taken off, shape (..., K, N): any integer or float dtype.
        largest: Bound of |x|, x being the other operand with its zero point taken off.

    Returns:
        Boundaries 0 = b0 < b1 < ... = K.
    """
    depth, columns = weight.shape[-2:]
    if not depth:
        return (0, 0)
    whole = np.abs(weight).sum(axis=-2, dtype=np.float64).max(initial=0)
    if float(whole) * largest <= EXACT:
        return (0, depth)
    magnitudes = np.abs(weight.astype(np.float64))
    sums = np.cumsum(magnitudes, axis=-2).reshape(-1, depth, columns)
    return tuple(_boundaries(sums, EXACT // max(1, largest)))


def _boundaries(sums: Array, limit: int) -> Iterator[int]:
    """Yield where blocks begin and end, each as long as its sums allow.

    Args:
        sums: Running sums of magnitudes along the reduced axis, (stack, K, N).
        limit: Of the sum of a block.
    """
    count, depth, columns = sums.shape
    base = np.zeros((count, 1, columns))
    end = 0
    yield end
    while end < depth:
        worst = (sums - base).max(axis=(0, 2)) if sums.size else np.zeros(depth)
        fitting = int(np.searchsorted(worst, limit, side="right"))
        # One row is a block even where it alone is too much: it is a product without a sum.
        end = max(fitting, end + 1)
        yield end
        base = sums[:, end - 1 : end]


def carrier(depth: int, blocks: tuple[int, ...]) -> type[np.floating]:
    """Return the type that carries a product fastest.

    That is float64 (exact to 2**53) where float32's blocks would be slivers: more than three, of
    less than 64 rows each.
    """
    count = len(blocks) - 1
    are_slivers = count > 3 and depth < 64 * count
    return np.float64 if are_slivers else np.float32


def integer_product(
    x: Array, weight: Array, blocks: tuple[int, ...], out: Array | None = None
) -> Array:
    """Return x @ weight exactly; both hold whole numbers.

    A weight in float64 makes one product in float64. In float32 one block gives float32, several
    float64 (or ``out``'s type).
    """
    if weight.dtype == np.float64:
        return _delivered(np.matmul(x.astype(np.float64), weight), out)
    if len(blocks) == 2:
        return np.asarray(np.matmul(x, weight, out=out))
    total: Array | None = None
    for start, end in pairwise(blocks):
        part = np.matmul(x[..., start:end], weight[..., start:end, :])
        if total is None:
            total = part.astype(np.float64)
        else:
            total += part
    assert total is not None
    return _delivered(total, out)


def _delivered(wide: Array, out: Array | None) -> Array:
    """Return a float64 result, or ``out`` filled with it."""
    if out is None:
        return wide
    out[...] = wide
    return out


def integer_matmul(a: Array, b: Array) -> Array:
    """Return a @ b exactly, for any whole numbers of up to 16 bits held as float32.

    The result is float64, or float32 from one block.
    """
    if not a.size or not b.size:
        return np.asarray(np.matmul(a, b))
    largest = int(np.abs(a).max())
    largest_product = largest * int(np.abs(b).max())
    if largest_product > EXACT:
        wide = np.matmul(a.astype(np.float64), b.astype(np.float64))
        return np.asarray(wide)  # exact to 2**53
    if b.ndim == 1:
        return integer_matmul(a, b[:, None])[..., 0]
    return integer_product(a, b, exact_blocks(b, largest))
