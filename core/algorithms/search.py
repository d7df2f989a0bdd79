"""Choosing a grid: the weight's own range, or one shrunk to where the error is least."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from array_api_compat import array_namespace, device

from ..numerics.affine import Array, QuantParams
from ..numerics.codec import choose, project
from ..numerics.layout import block_shape, is_grouped
from ..numerics.ranges import ranges
from ..scheme import QuantSpec
from .base import WeightContext

RATIOS = tuple(1.0 - i / 40 for i in range(25))
"""Shares of the range that are tried: 1 down to 0.4."""

Cost = Callable[[Array, Array], Array]
"""(matrix, projected matrix) -> error in the shape of the scales."""


def own_grid(matrix: Array, spec: QuantSpec, context: WeightContext) -> tuple[QuantParams, dict[str, Any] | None]:
    """Return the grid over the weight's own range, or the one that the context prescribes."""
    if context.params is not None:
        return context.params, None
    return choose(*ranges(matrix, spec), spec, None if spec.granularity == "tensor" else 0)


def searched_grid(
    matrix: Array, spec: QuantSpec, context: WeightContext, cost: Cost, ratios: tuple[float, ...] = RATIOS
) -> tuple[QuantParams, dict[str, Any] | None]:
    """Return the grid of least cost among shrunk ranges, chosen for each scale by itself.

    Asymmetric types shrink both ends alike first, then each end alone around the best.
    """
    if context.params is not None:
        return context.params, None
    xp = array_namespace(matrix)
    low, high = ranges(matrix, spec)
    axis = None if spec.granularity == "tensor" else 0

    def shrink(candidates: list[tuple[Array, Array]], best_low: Array, best_high: Array, best: Array | None) -> tuple[Array, Array, Array]:
        for tried_low, tried_high in candidates:
            params, _ = choose(tried_low, tried_high, spec, axis)
            error = cost(matrix, project(matrix, params))
            if best is None:
                best_low, best_high, best = tried_low, tried_high, error
                continue
            better = error < best
            best = xp.where(better, error, best)
            best_low, best_high = xp.where(better, tried_low, best_low), xp.where(better, tried_high, best_high)
        assert best is not None
        return best_low, best_high, best

    best_low, best_high, best = shrink([(low * r, high * r) for r in ratios], low, high, None)
    if not spec.symmetric:
        for _ in range(2):
            best_low, best_high, best = shrink([(best_low * r, best_high) for r in (0.85, 0.9, 0.95, 1.05, 1.1)], best_low, best_high, best)
            best_low, best_high, best = shrink([(best_low, best_high * r) for r in (0.85, 0.9, 0.95, 1.05, 1.1)], best_low, best_high, best)
    return choose(best_low, best_high, spec, axis)


def power_cost(spec: QuantSpec, power: float, weight: Array | None = None) -> Cost:
    """Return sum of weight * |w - w_q|**power over the elements that share a scale; weight is per feature."""

    def cost(matrix: Array, projected: Array) -> Array:
        xp = array_namespace(matrix)
        error = xp.abs(projected - xp.astype(matrix, xp.float32))
        error = error * error if power == 2.0 else error**power
        return sum_by_scale(error if weight is None else error * weight, spec)

    return cost


def gram_cost(spec: QuantSpec, gram: Array) -> Cost:
    """Return the squared error of each group's own contribution to the output: d G_g d^T with the group's block of the Gram matrix.

    Source: Lin et al. 2024, "AWQ", the clip search, with X^T X in place of the rows of X. ``channel`` granularity is one group.
    """
    grams: list[Array] = []

    def cost(matrix: Array, projected: Array) -> Array:
        xp = array_namespace(matrix)
        error = projected - xp.astype(matrix, xp.float32)
        rows, features = error.shape
        size = block_shape(spec)[1] if is_grouped(spec) else features
        count = -(-features // size)
        if pad := count * size - features:
            error = xp.concat([error, xp.zeros_like(error[:, :pad])], axis=1)
        if not grams:
            full = gram
            if pad:
                full = xp.concat([full, xp.zeros_like(full[:, :pad])], axis=1)
                full = xp.concat([full, xp.zeros_like(full[:pad, :])], axis=0)
            grams.append(xp.stack([full[i * size : (i + 1) * size, i * size : (i + 1) * size] for i in range(count)]))
        parts = xp.permute_dims(xp.reshape(error, (rows, count, size)), (1, 0, 2))
        each = xp.permute_dims(xp.sum(xp.matmul(parts, grams[0]) * parts, axis=2), (1, 0))
        if is_grouped(spec):
            height = block_shape(spec)[0]
            return sum_by_scale(each, spec.model_copy(update={"granularity": f"block:{height}x1"})) if height > 1 else each
        return each[:, 0] if spec.granularity == "channel" else xp.sum(each)

    return cost


def sum_by_scale(error: Array, spec: QuantSpec) -> Array:
    """Sum a (rows, features) matrix over the elements that share a scale."""
    xp = array_namespace(error)
    if spec.granularity == "tensor":
        return xp.sum(error)
    if spec.granularity == "channel":
        return xp.sum(error, axis=1)
    rows, columns = block_shape(spec)
    if tail := -error.shape[1] % columns:
        error = xp.concat([error, xp.zeros((error.shape[0], tail), dtype=error.dtype, device=device(error))], axis=1)
    if tail := -error.shape[0] % rows:
        error = xp.concat([error, xp.zeros((tail, error.shape[1]), dtype=error.dtype, device=device(error))], axis=0)
    return xp.sum(xp.reshape(error, (error.shape[0] // rows, rows, error.shape[1] // columns, columns)), axis=(1, 3))
