"""What tells several ways to read a batch apart, once the model runs with all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from octavo.core.values.trees import is_array


def agree(found: Sequence[tuple[np.ndarray, ...]]) -> bool:
    """True if what the readings give is the same: what they differ in has no influence."""
    some, *others = found
    return all(_same(some, other) for other in others)


def _same(some: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> bool:
    if len(some) != len(other):
        return False
    pairs = zip(some, other, strict=True)
    return all(
        a.shape == b.shape and np.allclose(a, b, equal_nan=True) for a, b in pairs
    )


def is_mask(value: Any, data: Any) -> bool:
    """True if a value can be nothing but a mask over data."""
    if not is_array(value):
        return False
    if "bool" in str(value.dtype):
        return True
    # A mask of zeros and ones lies over the data's first axes; along one they may be labels.
    axes = len(value.shape)
    covers = axes >= 2 and tuple(value.shape) == tuple(data.shape)[:axes]
    return covers and bool(((value == 0) | (value == 1)).all())
