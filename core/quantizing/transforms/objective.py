"""How much a choice of factors costs the members' outputs, on a Gram matrix."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from array_api_compat import array_namespace

from octavo.core.numerics.affine import Array
from octavo.core.numerics.codec import choose_params, project
from octavo.core.numerics.ranges import ranges
from octavo.core.numerics.rows import rows_of
from octavo.core.values.scheme import QuantSpec

from .base import Link, by_input_channel, by_output_channel

T = TypeVar("T")


def weight_error(
    link: Link, factors: Array, spec: QuantSpec, grams: Sequence[Array] | None = None
) -> float:
    """Return the error that rounding scaled weights makes at the members' outputs.

    It is the sum over members of tr(D G D^T), D = Q(W f) / f - W.

    Args:
        link: The group.
        factors: float32, shape (channels,).
        spec: How weights are quantized.
        grams: Each member's Gram matrix, where it is not the one that was observed.

    Source: Lin et al. 2024 (AWQ), eq. 4, with X^T X in place of X.
    """
    total = 0.0
    for op, gram in zip(link.members, grams or link.grams(), strict=True):
        rows = rows_of(op)
        assert rows is not None
        spread = rows.features_of(factors)
        matrix = by_output_channel(op, link.tensor)
        xp = array_namespace(matrix)
        parts = xp.reshape(matrix, (rows.groups, -1, matrix.shape[1]))
        for i in range(rows.groups):
            error = _rounding_error(parts[i, ...], spread[i, ...], spec)
            total += float(xp.sum(xp.matmul(error, gram[i, ...]) * error))
    return total


def _rounding_error(weight: Array, factors: Array, spec: QuantSpec) -> Array:
    """Return Q(W f) / f - W."""
    scaled = weight * factors
    low, high = ranges(scaled, spec)
    params, _ = choose_params(low, high, spec, 0)
    return project(scaled, params) / factors - weight


def input_error(
    link: Link, factors: Array, spec: QuantSpec, low: Array, high: Array
) -> float:
    """Return the expected error at the members' outputs from rounding the inputs per tensor.

    Rounding noise of step s is uniform, of variance s^2 / 12 in each channel of x / f (Widrow and
    Kollar 2008, eq. 5.7); through the scaled weights W f it reaches the output as
    s^2 / 12 * sum (W f)^2 a row.

    Args:
        link: The group.
        factors: float32, shape (channels,).
        spec: How inputs are quantized.
        low: The smallest value of each channel, shape (channels,).
        high: The largest.
    """
    xp = array_namespace(factors)
    params, _ = choose_params(xp.min(low / factors), xp.max(high / factors), spec, None)
    step = float(params.scale)
    total = 0.0
    for op in link.members:
        matrix = by_input_channel(op, link.tensor)
        rows = link.observed("gram", op).count
        weight_energy = float(xp.sum((matrix * factors[:, None]) ** 2))
        total += rows * step * step / 12 * weight_energy
    return total


def best_of(candidates: Iterable[tuple[float, T]]) -> T:
    """Return the choice of least cost; of equals the first."""
    return min(candidates, key=lambda pair: pair[0])[1]
