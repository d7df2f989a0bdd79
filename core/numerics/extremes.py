"""Smallest and largest values of many short groups, faster than a plain reduction over each."""

from __future__ import annotations

import numpy as np
from array_api_compat import array_namespace

from .affine import Array

SHORT = 256
"""Rows shorter than this cost NumPy more between its inner loops than within them."""


def extremes(block: Array, buffer: Array, *, magnitude: bool) -> tuple[Array, Array]:
    """Return (low, high) of each group; of the magnitudes, only high counts.

    Args:
        block: float32, shape (rows, groups, size).
        buffer: Of the same shape; it is written to.
        magnitude: The largest magnitude is wanted, not both ends.
    """
    xp = array_namespace(block)
    if magnitude and block.shape[2] < 1024:
        # Bit patterns of magnitudes are ordered as the numbers are, NaN above all, and integers are
        # compared faster.
        bits = xp.abs(block, out=buffer).view(xp.int32)
        largest = xp.max(bits, axis=2).view(xp.float32)
        return largest, largest
    low = xp.min(block, axis=2)
    high = xp.max(block, axis=2)
    if magnitude:
        high = xp.maximum(-low, high)
    return low, high


def numpy_extremes(
    block: np.ndarray, buffer: np.ndarray, *, magnitude: bool
) -> tuple[np.ndarray, np.ndarray]:
    """:func:`extremes` on bit patterns.

    As int32 the largest positive number is the greatest, as uint32 the largest negative one: NaN of
    either sign above all. Where a group has no number of a sign, the other's stands in; its range
    is widened to zero, or its magnitude taken, in any case.
    """
    is_short = block.shape[2] < SHORT
    if magnitude and is_short:
        magnitudes = np.abs(block, out=buffer)
        largest = _greatest(magnitudes.view(np.int32))
        return largest, largest
    low = _greatest(block.view(np.uint32))
    high = _greatest(block.view(np.int32))
    if magnitude:
        high = np.maximum(np.abs(low), np.abs(high))
    return low, high


def _greatest(bits: np.ndarray) -> np.ndarray:
    """Return the float32 number of each group whose bits are the greatest integer."""
    size = bits.shape[2]
    can_fold = size < SHORT and size % 8 == 0
    found: np.ndarray = _folded_max(bits) if can_fold else np.max(bits, axis=2)
    return found.view(np.float32)


def _folded_max(bits: np.ndarray) -> np.ndarray:
    """Return the greatest integer of each group.

    For groups so short that a reduction spends its time between them: each is compared with the one
    half a group later, all in one long loop (what runs over into the next group is not used). The
    halves are then turned into the last axis, four at a time (moved as one 16-byte number), where
    the loops are long again.
    """
    size = bits.shape[2]
    half = size // 2
    flat = bits.reshape(-1)
    earlier = flat[:-half]
    later = flat[half:]
    folded = np.empty_like(flat)
    np.maximum(earlier, later, out=folded[:-half])
    # complex128 stands for four codes that are moved at once; it is never computed with.
    groups = folded.reshape(-1, size)
    fours = groups.view(np.complex128)[:, : half // 4]
    turned = np.ascontiguousarray(fours.T)
    columns = turned.view(bits.dtype)
    quarters = np.max(columns, axis=0)
    pairs = np.maximum(quarters[0::2], quarters[1::2])
    found: np.ndarray = np.maximum(pairs[0::2], pairs[1::2])
    return found.reshape(bits.shape[:2])
