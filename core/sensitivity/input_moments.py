"""What a few batches show of an op's inputs, and what rounding then costs at its output."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from octavo.core.calibration.features import FeatureObserver
from octavo.core.numerics.affine import Array, QuantParams
from octavo.core.numerics.arrays import to_numpy
from octavo.core.numerics.layout import to_matrix
from octavo.core.values.graph import Weight
from octavo.core.values.scheme import OpScheme


@dataclass
class Moments:
    """What a few batches show of one value: enough for the noise of rounding it.

    Attributes:
        low: Smallest element.
        high: Largest element.
        square: Sum of squares.
        count: Number of elements.
    """

    low: float = np.inf
    high: float = -np.inf
    square: float = 0.0
    count: int = 0

    def update(self, x: np.ndarray) -> None:
        """Take one batch."""
        if not x.size:
            return
        self.low = min(self.low, float(x.min()))
        self.high = max(self.high, float(x.max()))
        flat = x.reshape(-1).astype(np.float32, copy=False)
        self.square += float(np.dot(flat, flat))
        self.count += x.size

    @property
    def power(self) -> float:
        """Mean square."""
        return self.square / max(1, self.count)


def rounding_noise(
    scheme: OpScheme, moments: Moments, params: QuantParams | None
) -> float:
    """Return the noise power of rounding a value: step^2 / 12, of an error uniform over a step."""
    if params is not None:
        steps = to_numpy(params.scale).astype(np.float64)
        return float(np.mean(np.square(steps))) / 12.0
    nothing_seen = moments.high < moments.low
    if scheme.mode != "dynamic" or scheme.input is None or nothing_seen:
        return 0.0
    # Codes always hold 0, so that a span reaches it.
    span = max(moments.high, 0.0) - min(moments.low, 0.0)
    step = span / (2**scheme.input.bits - 1)
    return float(step**2) / 12.0


def weight_matrix(array: Array, weight: Weight) -> np.ndarray:
    """Return a weight as (channels, features), float32."""
    axis = weight.channel_axis % array.ndim
    return np.asarray(to_matrix(to_numpy(array), axis), dtype=np.float32)


def second_moments(observer: FeatureObserver) -> np.ndarray:
    """Return the mean over rows of what was observed: (groups, features[, features])."""
    return np.asarray(observer.value) / max(1, observer.count)


def energy(matrix: np.ndarray, second: np.ndarray | None) -> float:
    """Return tr(M S M^T) of a (channels, features) matrix M.

    Args:
        matrix: M.
        second: S, the second moments of the rows that M multiplies: (groups, features, features),
            their diagonal (groups, features), or None for the identity.
    """
    if second is None:
        return float(np.square(matrix).sum())
    groups = len(second)
    parts = matrix.reshape(groups, -1, matrix.shape[1])
    if second.ndim == 2:
        return float((np.square(parts) * second[:, None, :]).sum())
    products = np.matmul(parts, second) * parts
    # Rounding in float32 may leave a tiny negative sum.
    return max(0.0, float(products.sum()))
