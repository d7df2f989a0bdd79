"""What is asked of arrays of any library: their numbers in NumPy, and whether all are finite."""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import array_namespace

from .affine import Array


def to_numpy(x: Any) -> np.ndarray:
    """Return any array or tensor as a NumPy array, detached and on the CPU.

    bfloat16 becomes float32.
    """
    if not hasattr(x, "detach"):
        return np.asarray(x)
    x = x.detach().cpu()
    if str(x.dtype) == "torch.bfloat16":
        # torch hands none over: NumPy has no such dtype.
        x = x.float()
    return np.asarray(x.numpy())


def is_finite(x: Array) -> bool:
    """True if an array holds no infinity and no NaN; integers never do."""
    if "float" not in str(x.dtype):
        return True
    xp = array_namespace(x)
    # A finite sum proves finite terms and needs no temporary; only an overflowing one is looked at
    # term by term.
    if bool(xp.isfinite(xp.sum(x))):
        return True
    return bool(xp.all(xp.isfinite(x)))
