"""The grid that changes an op's output least, among shrunk ranges."""

from __future__ import annotations

from dataclasses import dataclass

from array_api_compat import array_namespace, device

from octavo.core.contract.algorithm import WeightContext
from octavo.core.numerics.affine import Array
from octavo.core.numerics.codec import choose, project, project_values
from octavo.core.numerics.ranges import ranges
from octavo.core.values.scheme import QuantSpec
from octavo.core.values.sizes import block_shape, is_grouped

from .search import RATIOS, Grid, searched_grid, whole_output_cost, with_zeros


def output_grid(matrix: Array, spec: QuantSpec, context: WeightContext, gram: Array) -> Grid:
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
    if context.params is not None:
        return context.params, None
    xp = array_namespace(matrix)
    weight = xp.astype(matrix, xp.float32)
    if not is_grouped(spec):
        return searched_grid(weight, spec, context, whole_output_cost(gram, spec))
    low, high = ranges(weight, spec)
    wide = block_shape(spec)[1]
    shares = xp.asarray(_shares(spec), dtype=xp.float32, device=device(weight))
    error = project(weight, choose(low, high, spec, 0)[0]) - weight
    leaning = xp.matmul(error, gram)
    for g in range(low.shape[1]):
        columns = slice(g * wide, min((g + 1) * wide, weight.shape[1]))
        before = error[:, columns]
        own = gram[columns, columns]
        # What the other groups' errors make of this one's inputs.
        cross = leaning[:, columns] - xp.matmul(before, own)
        candidates = _Candidates(shares[:, :1] * low[None, :, g], shares[:, 1:] * high[None, :, g])
        tried = candidates.errors(weight[:, columns], spec)
        cost = xp.sum(tried * (xp.matmul(tried, own) + 2 * cross[None, :, :]), axis=2)
        best = _best_of_each_scale(cost, spec)
        low[:, g], high[:, g] = candidates.ends(best)
        chosen = _of_each_row(tried, best, spec)
        leaning = leaning + xp.matmul(chosen - before, gram[columns, :])
        error[:, columns] = chosen
    return choose(low, high, spec, 0)


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
        tall = block_shape(spec)[0]
        rows = part.shape[0]
        grid = choose(self.low, self.high, spec, 0)[0]
        scale = xp.repeat(grid.scale, tall, axis=1)[:, :rows, None]
        zero_point = xp.repeat(grid.zero_point, tall, axis=1)[:, :rows, None]
        whole = part[None, :, :]
        return project_values(whole, scale, zero_point, spec) - whole

    def ends(self, best: Array) -> tuple[Array, Array]:
        """Return the chosen range of each scale."""
        xp = array_namespace(best)
        low = xp.take_along_axis(self.low, best[None, :], axis=0)
        high = xp.take_along_axis(self.high, best[None, :], axis=0)
        return low[0, :], high[0, :]


def _best_of_each_scale(cost: Array, spec: QuantSpec) -> Array:
    """Return the candidate of least cost for each scale; cost has shape (candidates, rows)."""
    xp = array_namespace(cost)
    tall = block_shape(spec)[0]
    padded = with_zeros(cost, 1, -cost.shape[1] % tall)
    by_scale = xp.sum(xp.reshape(padded, (cost.shape[0], -1, tall)), axis=2)
    return xp.argmin(by_scale, axis=0)


def _of_each_row(tried: Array, best: Array, spec: QuantSpec) -> Array:
    """Return the errors of each row's chosen candidate, shape (rows, columns)."""
    xp = array_namespace(tried)
    mine = xp.repeat(best, block_shape(spec)[0])[: tried.shape[1]]
    return xp.take_along_axis(tried, mine[None, :, None], axis=0)[0, :, :]
