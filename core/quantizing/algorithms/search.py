"""Choosing a grid: the weight's own range, or one shrunk to where the error is least."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from array_api_compat import array_namespace, device

from octavo.core.contract.algorithm import WeightContext
from octavo.core.numerics.affine import Array, QuantParams
from octavo.core.numerics.codec import choose_params, project
from octavo.core.numerics.ranges import ranges
from octavo.core.values.scheme import QuantSpec
from octavo.core.values.sizes import block_shape

RATIOS = tuple(1.0 - i / 40 for i in range(25))
"""Shares of the range that are tried: 1 down to 0.4."""

_NEARBY = (0.85, 0.9, 0.95, 1.05, 1.1)
"""Shares of one end that are tried around the best range."""

Cost = Callable[[Array, Array], Array]
"""(matrix, projected matrix) -> error in the shape of the scales."""

Grid = tuple[QuantParams, dict[str, Any] | None]
"""Parameters, and the second level of two-level scales."""


def given_grid(context: WeightContext) -> Grid | None:
    """Return the grid that a context prescribes, or that the algorithm before chose; else None."""
    if context.params is not None:
        return context.params, None
    if context.start is not None:
        return context.start.params, context.start.extra
    return None


def own_grid(matrix: Array, spec: QuantSpec, context: WeightContext) -> Grid:
    """Return the grid over the weight's own range, or the one that the context gives."""
    given = given_grid(context)
    if given is not None:
        return given
    low, high = ranges(matrix, spec)
    return choose_params(low, high, spec, channel_axis(spec))


def channel_axis(spec: QuantSpec) -> int | None:
    """Return the channel axis of a weight's matrix; None where all of it shares one scale."""
    return None if spec.granularity == "tensor" else 0


def searched_grid(
    matrix: Array,
    spec: QuantSpec,
    context: WeightContext,
    cost: Cost,
    ratios: tuple[float, ...] = RATIOS,
) -> Grid:
    """Return the grid of least cost among shrunk ranges, chosen for each scale by itself.

    Asymmetric types shrink both ends alike first, then each end alone around the best.
    """
    given = given_grid(context)
    if given is not None:
        return given
    low, high = ranges(matrix, spec)
    search = _RangeSearch(matrix, spec, cost)
    for ratio in ratios:
        search.take(low * ratio, high * ratio)
    if not spec.symmetric:
        # What one end's move gains may let the other move: each takes two turns.
        for _ in range(2):
            search.move_low()
            search.move_high()
    return choose_params(search.low, search.high, spec, channel_axis(spec))


class _RangeSearch:
    """The best range of each scale among those that were tried.

    Attributes:
        low: Its lower end.
        high: Its upper end.
    """

    def __init__(self, matrix: Array, spec: QuantSpec, cost: Cost) -> None:
        self.low: Array = None
        self.high: Array = None
        self._error: Array = None
        self._matrix = matrix
        self._spec = spec
        self._cost = cost

    def take(self, low: Array, high: Array) -> None:
        """Try a range; each scale keeps it where it is better than the best so far."""
        params, _ = choose_params(low, high, self._spec, channel_axis(self._spec))
        error = self._cost(self._matrix, project(self._matrix, params))
        if self._error is None:
            self.low, self.high, self._error = low, high, error
            return
        xp = array_namespace(error)
        better = error < self._error
        self._error = xp.where(better, error, self._error)
        self.low = xp.where(better, low, self.low)
        self.high = xp.where(better, high, self.high)

    def move_low(self) -> None:
        """Try other lower ends around the best range."""
        low, high = self.low, self.high
        for ratio in _NEARBY:
            self.take(low * ratio, high)

    def move_high(self) -> None:
        """Try other upper ends around the best range."""
        low, high = self.low, self.high
        for ratio in _NEARBY:
            self.take(low, high * ratio)


def power_cost(spec: QuantSpec, power: float, weight: Array | None = None) -> Cost:
    """Return sum of weight * |w - w_q|**power over the elements that share a scale.

    Args:
        spec: Says which share one.
        power: Of the error.
        weight: Per feature; None where all weigh alike.
    """

    def cost(matrix: Array, projected: Array) -> Array:
        xp = array_namespace(matrix)
        error = xp.abs(projected - xp.astype(matrix, xp.float32))
        # A product is faster than a power, and the same.
        error = error * error if power == 2.0 else error**power
        return sum_by_scale(error if weight is None else error * weight, spec)

    return cost


def sum_by_scale(error: Array, spec: QuantSpec) -> Array:
    """Sum a (rows, features) matrix over the elements that share a scale."""
    xp = array_namespace(error)
    if spec.granularity == "tensor":
        return xp.sum(error)
    if spec.granularity == "channel":
        return xp.sum(error, axis=1)
    tall, wide = block_shape(spec)
    padded = with_zeros(
        with_zeros(error, 1, -error.shape[1] % wide), 0, -error.shape[0] % tall
    )
    rows, columns = padded.shape
    blocks = xp.reshape(padded, (rows // tall, tall, columns // wide, wide))
    return xp.sum(blocks, axis=(1, 3))


def with_zeros(matrix: Array, axis: int, count: int) -> Array:
    """Return a matrix with so many zeros after it along an axis."""
    if not count:
        return matrix
    xp = array_namespace(matrix)
    shape = (count, matrix.shape[1]) if axis == 0 else (matrix.shape[0], count)
    zeros = xp.zeros(shape, dtype=matrix.dtype, device=device(matrix))
    return xp.concat([matrix, zeros], axis=axis)


def whole_output_cost(gram: Array, spec: QuantSpec) -> Cost:
    """Return tr(D G D^T) of D = Q(W) - W: of each row, or of all where they share one scale."""

    def cost(matrix: Array, projected: Array) -> Array:
        xp = array_namespace(matrix)
        error = projected - matrix
        rows = xp.sum(xp.matmul(error, gram) * error, axis=1)
        return rows if spec.granularity == "channel" else xp.sum(rows)

    return cost
