"""How much a choice of factors costs the members' outputs, on a Gram matrix."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from array_api_compat import array_namespace

from octavo.core.numerics.affine import Array
from octavo.core.numerics.codec import choose, project
from octavo.core.numerics.layout import to_matrix
from octavo.core.numerics.ranges import ranges
from octavo.core.numerics.rows import rows_of
from octavo.core.values.scheme import QuantSpec

from .base import Link

T = TypeVar("T")


def weight_error(
    link: Link, factors: Array, spec: QuantSpec, grams: Sequence[Array] | None = None
) -> float:
    """Return sum over members of tr(D G D^T), D = Q(W f) / f - W: the error that rounding scaled weights makes at the output.

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
        assert op.weight is not None
        assert rows is not None
        array = link.tensor(op.weight.name)
        xp = array_namespace(array)
        matrix = xp.astype(to_matrix(array, op.weight.channel_axis), xp.float32)
        spread = rows.features_of(factors)
        parts = xp.reshape(matrix, (rows.groups, -1, matrix.shape[1]))
        for i in range(rows.groups):
            scaled = parts[i, ...] * spread[i, ...]
            axis = None if spec.granularity == "tensor" else 0
            error = (
                project(scaled, choose(*ranges(scaled, spec), spec, axis)[0]) / spread[i, ...]
                - parts[i, ...]
            )
            total += float(xp.sum(xp.matmul(error, gram[i, ...]) * error))
    return total


def input_error(link: Link, factors: Array, spec: QuantSpec, low: Array, high: Array) -> float:
    """Return the expected error at the members' outputs from rounding the inputs per tensor.

    Rounding noise of step s is uniform, of variance s^2 / 12 in each channel of x / f (Widrow and Kollar 2008, eq. 5.7); through
    the scaled weights W f it reaches the output as s^2 / 12 * sum (W f)^2 a row.

    Args:
        link: The group.
        factors: float32, shape (channels,).
        spec: How inputs are quantized.
        low: The smallest value of each channel, shape (channels,).
        high: The largest.
    """
    xp = array_namespace(factors)
    params = choose(xp.min(low / factors), xp.max(high / factors), spec, None)[0]
    step = float(params.scale)
    total = 0.0
    for op, matrix in zip(link.members, link.weights(), strict=True):
        total += (
            link.observed("gram", op).count
            * step
            * step
            / 12
            * float(xp.sum((matrix * factors[:, None]) ** 2))
        )
    return total


def best_of(candidates: Iterable[tuple[float, T]]) -> T:
    """Return the choice of least cost; of equals the first."""
    return min(candidates, key=lambda pair: pair[0])[1]
