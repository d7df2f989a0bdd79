"""Quadratic forms and traces of a model's Hessian, from an adapter's draws of the gradient."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from array_api_compat import array_namespace, device

from octavo.core.contract.adapter import Batch, Session
from octavo.core.contract.output_metric import OutputMetric
from octavo.core.numerics.affine import Array
from octavo.core.numerics.layout import to_matrix

DRAWS = 8
"""Gradients, or directions of a Hessian-vector product, that are drawn on every batch."""

ErrorOf = Callable[[], Array]
"""Returns an error of a weight as (channels, features)."""


@dataclass(frozen=True)
class Change:
    """What a scheme changes at one op.

    Attributes:
        error: Computes the weight's error anew, so that none is kept in memory.
        noise: What rounding the input adds to each output channel, over the input's power
            (channels,); None where it stays in float.
    """

    error: ErrorOf
    noise: np.ndarray | None = None


@dataclass(frozen=True)
class Differentiated:
    """Where gradients are taken.

    Attributes:
        session: Offers ``gradients``.
        batches: Batches.
        metric: The distance of the outputs over them; None for the session's plain one.
    """

    session: Session
    batches: Sequence[Batch]
    metric: OutputMetric | None

    def run(
        self,
        names: Sequence[str],
        sink: Callable[[str, Array], None],
        *,
        seed: int = 0,
        along: Mapping[str, Array] | None = None,
    ) -> int:
        """Hand draws of the gradient, or Hessian products, to ``sink``."""
        run = self.session.gradients
        if self.metric is None:
            return run(self.batches, names, sink, seed=seed, along=along)
        return run(
            self.batches, names, sink, seed=seed, along=along, metric=self.metric
        )


def quadratic_forms(
    where: Differentiated,
    changes: Mapping[str, Mapping[str, Change]],
    axes: Mapping[str, int],
    seed: int,
    begin_draw: Callable[[], None],
) -> dict[str, float]:
    """Estimate d^T H d for several changes of several weights, in one pass of draws.

    For an error of the weight it is the mean over draws of the sum over output channels of (g .
    d)^2. A channel's part, written with the gradient at the op's output and the output's change, is
    ModelOpt's score (gradient x output change)^2. Rounding errors of different channels are
    independent, so that the products between channels cancel.

    Noise of the input meets the gradient at the op's output, G, which nobody hands over. But g is
    the sum over rows of G x, so that |g|^2 of a channel is its sum of G^2 times the input's power,
    where rows are independent.

    Args:
        where: Where gradients are taken.
        changes: Weight name -> label -> change.
        axes: Weight name -> the channel axis of its gradient.
        seed: Of the draws.
        begin_draw: Called before each.

    Returns:
        Label -> the estimate.
    """
    sums = {label: 0.0 for wanted in changes.values() for label in wanted}
    count = 0

    def sink(name: str, gradient: Array) -> None:
        rows = to_matrix(gradient, axes[name])
        xp = array_namespace(rows)
        squares = None
        for label, change in changes[name].items():
            # One share per output channel.
            error = xp.asarray(change.error(), device=device(rows))
            shares = xp.sum(rows * error, axis=1)
            total = float(xp.sum(shares * shares))
            if change.noise is not None:
                squares = xp.sum(rows * rows, axis=1) if squares is None else squares
                noise = xp.asarray(change.noise, device=device(rows))
                total += float(xp.sum(squares * noise))
            sums[label] += total

    for draw in range(DRAWS):
        begin_draw()
        count += where.run(tuple(changes), sink, seed=seed + draw)
    return {label: total / max(1, count) for label, total in sums.items()}


def traces(
    where: Differentiated,
    weights: Sequence[str],
    seed: int,
    begin_draw: Callable[[], None],
) -> dict[str, float]:
    """Return the trace of each weight's own block of H, by Hutchinson's estimator.

    It is E[v . H v] for random signs v; HAWQ-V2 (Dong et al. 2020, arXiv:1911.03852, section 3.3).
    All weights move together: the blocks between two of them are multiplied by independent signs
    and cancel.

    Args:
        where: Where gradients are taken.
        weights: Names.
        seed: Of the signs.
        begin_draw: Called before each set of signs.
    """
    sums = dict.fromkeys(weights, 0.0)
    count = 0
    tensor = where.session.tensor
    for draw in range(DRAWS):
        begin_draw()
        signs = {name: _signs(tensor(name), seed, draw, name) for name in weights}

        def sink(name: str, product: Array, signs: Mapping[str, Array] = signs) -> None:
            xp = array_namespace(product)
            along = xp.sum(signs[name] * product)
            sums[name] += float(along)

        count += where.run(weights, sink, along=signs)
    # Where the true trace is near 0 the estimate may fall below it; losses are never negative.
    return {name: max(0.0, total / max(1, count)) for name, total in sums.items()}


def _signs(like: Array, seed: int, draw: int, name: str) -> Array:
    """Return random signs of a tensor's shape, float32, on its device."""
    # A CRC and not hash(), which differs from process to process.
    random = np.random.default_rng([seed, draw, zlib.crc32(name.encode())])
    bits = random.integers(0, 2, tuple(like.shape), dtype=np.int8)
    signs = bits.astype(np.float32) * 2 - 1
    xp = array_namespace(like)
    return xp.asarray(signs, device=device(like))
