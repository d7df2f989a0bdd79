"""Ways to round x / scale to a whole number.

All take float32 and return float32 of the same shape.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

Array = Any
Rounding = Callable[[Array], Array]


def nearest(x: Array) -> Array:
    """Round to nearest, ties to even: IEEE 754 and ONNX QuantizeLinear."""
    return array_namespace(x).round(x)


def stochastic(seed: int) -> Rounding:
    """Return a rounding that goes up with the probability of the fraction: its mean error is zero.

    Source: Gupta et al. 2015, "Deep Learning with Limited Numerical Precision". The draws depend on
    ``seed`` and the shape alone, and are the same in every namespace.
    """

    def rounding(x: Array) -> Array:
        xp = array_namespace(x)
        drawn = np.random.default_rng(seed).random(tuple(x.shape), dtype=np.float32)
        draws = xp.asarray(drawn, device=device(x))
        low = xp.floor(x)
        return low + xp.astype(draws < x - low, xp.float32)

    return rounding


def given(up: Array) -> Rounding:
    """Return the rounding that goes up exactly where ``up`` is true (AdaRound, AutoRound).

    Args:
        up: bool, the shape of x.
    """

    def rounding(x: Array) -> Array:
        xp = array_namespace(x)
        return xp.floor(x) + xp.astype(up, xp.float32)

    return rounding
