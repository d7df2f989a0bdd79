"""Choosing a grid: the weight's own range, or one shrunk to where the error is least."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from array_api_compat import array_namespace, device

from octavo.core.contract.algorithm import WeightContext
from octavo.core.numerics.affine import Array, QuantParams
from octavo.core.numerics.codec import choose, project, project_values
from octavo.core.numerics.ranges import ranges
from octavo.core.values.scheme import QuantSpec
from octavo.core.values.sizes import block_shape, is_grouped

RATIOS = tuple(1.0 - i / 40 for i in range(25))
"""Shares of the range that are tried: 1 down to 0.4."""

Cost = Callable[[Array, Array], Array]
"""(matrix, projected matrix) -> error in the shape of the scales."""


def own_grid(
    matrix: Array, spec: QuantSpec, context: WeightContext
) -> tuple[QuantParams, dict[str, Any] | None]:
    """Return the grid over the weight's own range, or the one that the context prescribes."""
    if context.params is not None:
        return context.params, None
    return choose(*ranges(matrix, spec), spec, None if spec.granularity == "tensor" else 0)


def searched_grid(
    matrix: Array,
    spec: QuantSpec,
    context: WeightContext,
    cost: Cost,
    ratios: tuple[float, ...] = RATIOS,
) -> tuple[QuantParams, dict[str, Any] | None]:
    """Return the grid of least cost among shrunk ranges, chosen for each scale by itself.

    Asymmetric types shrink both ends alike first, then each end alone around the best.
    """
    if context.params is not None:
        return context.params, None
    xp = array_namespace(matrix)
    low, high = ranges(matrix, spec)
    axis = None if spec.granularity == "tensor" else 0

    def shrink(
        candidates: list[tuple[Array, Array]], best_low: Array, best_high: Array, best: Array | None
    ) -> tuple[Array, Array, Array]:
        for tried_low, tried_high in candidates:
            params, _ = choose(tried_low, tried_high, spec, axis)
            error = cost(matrix, project(matrix, params))
            if best is None:
                best_low, best_high, best = tried_low, tried_high, error
                continue
            better = error < best
            best = xp.where(better, error, best)
            best_low, best_high = (
                xp.where(better, tried_low, best_low),
                xp.where(better, tried_high, best_high),
            )
        assert best is not None
        return best_low, best_high, best

    best_low, best_high, best = shrink([(low * r, high * r) for r in ratios], low, high, None)
    if not spec.symmetric:
        for _ in range(2):
            best_low, best_high, best = shrink(
                [(best_low * r, best_high) for r in (0.85, 0.9, 0.95, 1.05, 1.1)],
                best_low,
                best_high,
                best,
            )
            best_low, best_high, best = shrink(
                [(best_low, best_high * r) for r in (0.85, 0.9, 0.95, 1.05, 1.1)],
                best_low,
                best_high,
                best,
            )
    return choose(best_low, best_high, spec, axis)


def power_cost(spec: QuantSpec, power: float, weight: Array | None = None) -> Cost:
    """Return sum of weight * |w - w_q|**power over the elements that share a scale; weight is per feature."""

    def cost(matrix: Array, projected: Array) -> Array:
        xp = array_namespace(matrix)
        error = xp.abs(projected - xp.astype(matrix, xp.float32))
        error = error * error if power == 2.0 else error**power
        return sum_by_scale(error if weight is None else error * weight, spec)

    return cost


def output_grid(
    matrix: Array, spec: QuantSpec, context: WeightContext, gram: Array
) -> tuple[QuantParams, dict[str, Any] | None]:
    """Return the grid of least output error tr(D G D^T), D = Q(W) - W, among shrunk ranges.

    Lin et al. 2024 (AWQ) search each group by its own contribution d G_g d^T. Errors of shrunk groups point the same way
    and add up, so here the groups take turns and each sees what the others leave: d G_g d^T + 2 d (D G)_g.
    """
    if context.params is not None:
        return context.params, None
    xp = array_namespace(matrix)
    weight = xp.astype(matrix, xp.float32)
    if not is_grouped(spec):
        return searched_grid(weight, spec, context, lambda w, q: _whole_cost(q - w, gram, spec))
    low, high = ranges(weight, spec)
    size = block_shape(spec)[1]
    error = project(weight, choose(low, high, spec, 0)[0]) - weight
    leaning = xp.matmul(error, gram)
    height, rows = block_shape(spec)[0], weight.shape[0]
    shares = xp.asarray(_shares(spec), dtype=xp.float32, device=device(weight))
    for g in range(low.shape[1]):
        columns = slice(g * size, min((g + 1) * size, weight.shape[1]))
        part, own, before = weight[:, columns], gram[columns, columns], error[:, columns]
        cross = leaning[:, columns] - xp.matmul(before, own)
        # All candidates at once: (candidates, scales), and (candidates, rows, columns) for what they make of the weight.
        ends = [shares[:, i : i + 1] * end[None, :, g] for i, end in enumerate((low, high))]
        grid = choose(ends[0], ends[1], spec, 0)[0]
        scale, zero = (
            xp.repeat(p, height, axis=1)[:, :rows, None] for p in (grid.scale, grid.zero_point)
        )
        tried = project_values(part[None, :, :], scale, zero, spec) - part[None, :, :]
        cost = xp.sum(tried * (xp.matmul(tried, own) + 2 * cross[None, :, :]), axis=2)
        if pad := -rows % height:
            cost = xp.concat(
                [cost, xp.zeros((cost.shape[0], pad), dtype=cost.dtype, device=device(cost))],
                axis=1,
            )
        best = xp.argmin(xp.sum(xp.reshape(cost, (cost.shape[0], -1, height)), axis=2), axis=0)
        mine = xp.repeat(best, height)[:rows]
        chosen = xp.take_along_axis(tried, mine[None, :, None], axis=0)[0, :, :]
        low[:, g] = xp.take_along_axis(ends[0], best[None, :], axis=0)[0, :]
        high[:, g] = xp.take_along_axis(ends[1], best[None, :], axis=0)[0, :]
        leaning = leaning + xp.matmul(chosen - before, gram[columns, :])
        error[:, columns] = chosen
    return choose(low, high, spec, 0)


def _shares(spec: QuantSpec) -> list[tuple[float, float]]:
    if spec.symmetric:
        return [(r, r) for r in RATIOS[::2]]
    steps = (1.05, 1.0, 0.95, 0.9, 0.8)
    return [(a, b) for a in steps for b in steps]


def _whole_cost(error: Array, gram: Array, spec: QuantSpec) -> Array:
    xp = array_namespace(error)
    rows = xp.sum(xp.matmul(error, gram) * error, axis=1)
    return rows if spec.granularity == "channel" else xp.sum(rows)


def sum_by_scale(error: Array, spec: QuantSpec) -> Array:
    """Sum a (rows, features) matrix over the elements that share a scale."""
    xp = array_namespace(error)
    if spec.granularity == "tensor":
        return xp.sum(error)
    if spec.granularity == "channel":
        return xp.sum(error, axis=1)
    rows, columns = block_shape(spec)
    if tail := -error.shape[1] % columns:
        error = xp.concat(
            [error, xp.zeros((error.shape[0], tail), dtype=error.dtype, device=device(error))],
            axis=1,
        )
    if tail := -error.shape[0] % rows:
        error = xp.concat(
            [error, xp.zeros((tail, error.shape[1]), dtype=error.dtype, device=device(error))],
            axis=0,
        )
    return xp.sum(
        xp.reshape(error, (error.shape[0] // rows, rows, error.shape[1] // columns, columns)),
        axis=(1, 3),
    )
