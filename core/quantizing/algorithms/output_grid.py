"""The grid that changes an op's output least, among shrunk ranges."""

from __future__ import annotations

from dataclasses import dataclass

from array_api_compat import array_namespace, device

from octavo.core.contract.algorithm import WeightContext
from octavo.core.numerics.affine import Array
from octavo.core.numerics.codec import choose_params, project, project_values
from octavo.core.numerics.ranges import ranges
from octavo.core.values.scheme import QuantSpec
from octavo.core.values.sizes import block_shape, is_grouped

from .search import (
    RATIOS,
    Grid,
    given_grid,
    searched_grid,
    whole_output_cost,
    with_zeros,
)


def output_grid(
    matrix: Array, spec: QuantSpec, context: WeightContext, gram: Array
) -> Grid:
    """Return the grid of least output error tr(D G D^T), D = Q(W) - W, among shrunk ranges.

    Lin et al. 2024 (AWQ) search each group by its own contribution d G_g d^T. Errors of shrunk
    groups point the same way and add up, so here the groups take turns and each sees what the
    others leave: d G_g d^T + 2 d (D G)_g.

    Args:
        matrix: The weight, shape (rows, features).
        spec: Any dtype and granularity.
        context: May prescribe the grid.
        gram: G, shape (features, features).
    """
    given = given_grid(context)
    if given is not None:
        return given
    xp = array_namespace(matrix)
    weight = xp.astype(matrix, xp.float32)
    if not is_grouped(spec):
        return searched_grid(weight, spec, context, whole_output_cost(gram, spec))
    turns = _Turns(weight, spec, gram)
    for group in range(turns.low.shape[1]):
        turns.take(group)
    return choose_params(turns.low, turns.high, spec, 0)


class _Turns:
    """The ranges of all groups of columns, each chosen by what the others leave.

    Attributes:
        low: Lower ends so far, in the shape of the scales.
        high: Upper ends.
    """

    def __init__(self, weight: Array, spec: QuantSpec, gram: Array) -> None:
        xp = array_namespace(weight)
        self.low, self.high = ranges(weight, spec)
        params, _ = choose_params(self.low, self.high, spec, 0)
        self._weight = weight
        self._spec = spec
        self._gram = gram
        self._error = project(weight, params) - weight
        # What all errors so far make of the inputs.
        self._leaning = xp.matmul(self._error, gram)
        where = device(weight)
        self._shares = xp.asarray(_shares(spec), dtype=xp.float32, device=where)

    def take(self, group: int) -> None:
        """Choose the range of one group."""
        xp = array_namespace(self._weight)
        columns = self._columns_of(group)
        own_gram = self._gram[columns, columns]
        before = self._error[:, columns]
        of_others = self._leaning[:, columns] - xp.matmul(before, own_gram)
        candidates = self._candidates(group)
        tried = candidates.errors(self._weight[:, columns], self._spec)
        own_leaning = xp.matmul(tried, own_gram)
        slope = own_leaning + 2 * of_others[None, :, :]
        cost = xp.sum(tried * slope, axis=2)
        best = _best_of_each_scale(cost, self._spec)
        low, high = candidates.ends(best)
        self.low[:, group] = low
        self.high[:, group] = high
        chosen = _of_each_row(tried, best, self._spec)
        moved = chosen - before
        change = xp.matmul(moved, self._gram[columns, :])
        self._leaning = self._leaning + change
        self._error[:, columns] = chosen

    def _columns_of(self, group: int) -> slice:
        _, wide = block_shape(self._spec)
        first = group * wide
        return slice(first, first + wide)

    def _candidates(self, group: int) -> _Candidates:
        low = self.low[None, :, group]
        high = self.high[None, :, group]
        below = self._shares[:, :1]
        above = self._shares[:, 1:]
        return _Candidates(below * low, above * high)


def _shares(spec: QuantSpec) -> list[tuple[float, float]]:
    """Return the shares of the lower and the upper end that are tried."""
    if spec.symmetric:
        return [(ratio, ratio) for ratio in RATIOS[::2]]
    steps = (1.05, 1.0, 0.95, 0.9, 0.8)
    return [(below, above) for below in steps for above in steps]


@dataclass(frozen=True, slots=True, eq=False)
class _Candidates:
    """Ranges of one group of columns, all tried at once.

    Attributes:
        low: Shape (candidates, scales).
        high: Likewise.
    """

    low: Array
    high: Array

    def errors(self, part: Array, spec: QuantSpec) -> Array:
        """Return what each candidate does to the columns, shape (candidates, rows, columns)."""
        xp = array_namespace(part)
        tall, _ = block_shape(spec)
        rows = part.shape[0]
        grid, _ = choose_params(self.low, self.high, spec, 0)
        scale = xp.repeat(grid.scale, tall, axis=1)[:, :rows, None]
        zero_point = xp.repeat(grid.zero_point, tall, axis=1)[:, :rows, None]
        whole = part[None, :, :]
        projected = project_values(whole, scale, zero_point, spec)
        return projected - whole

    def ends(self, best: Array) -> tuple[Array, Array]:
        """Return the chosen range of each scale."""
        xp = array_namespace(best)
        picked = best[None, :]
        low = xp.take_along_axis(self.low, picked, axis=0)
        high = xp.take_along_axis(self.high, picked, axis=0)
        return low[0, :], high[0, :]


def _best_of_each_scale(cost: Array, spec: QuantSpec) -> Array:
    """Return the candidate of least cost for each scale; cost has shape (candidates, rows)."""
    xp = array_namespace(cost)
    tall, _ = block_shape(spec)
    candidates, rows = cost.shape
    padded = with_zeros(cost, 1, -rows % tall)
    rows_by_scale = xp.reshape(padded, (candidates, -1, tall))
    by_scale = xp.sum(rows_by_scale, axis=2)
    return xp.argmin(by_scale, axis=0)


def _of_each_row(tried: Array, best: Array, spec: QuantSpec) -> Array:
    """Return the errors of each row's chosen candidate, shape (rows, columns)."""
    xp = array_namespace(tried)
    tall, _ = block_shape(spec)
    rows = tried.shape[1]
    # The last block may be shorter than the others.
    mine = xp.repeat(best, tall)[:rows]
    chosen = xp.take_along_axis(tried, mine[None, :, None], axis=0)
    return chosen[0, :, :]
