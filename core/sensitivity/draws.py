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

SURE = 2.0
"""Standard deviations beyond what chance does, from which on products between channels matter."""

ErrorOf = Callable[[], Array]
"""Returns an error of a weight as (channels, features)."""


@dataclass(frozen=True)
class Change:
    """What a scheme changes at one op.

    Attributes:
        error: Computes the weight's error anew, so that none is kept in memory.
        noise: What rounding the input adds to each output channel, over the input's variance
            (channels,); None where it stays in float.
        mean: Direction of the input's mean, (groups, features), of length 1 or 0.
    """

    error: ErrorOf
    noise: np.ndarray | None = None
    mean: np.ndarray | None = None


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


@dataclass
class _Sums:
    """What one change adds up to over the draws.

    Attributes:
        by_channel: Of (g . d)^2, channel by channel.
        whole: Of (g . d)^2, all channels together.
        noise: Of what noise of the input costs.
    """

    by_channel: float = 0.0
    whole: float = 0.0
    noise: float = 0.0


def quadratic_forms(
    where: Differentiated,
    changes: Mapping[str, Mapping[str, Change]],
    axes: Mapping[str, int],
    seed: int,
    begin_draw: Callable[[], None],
) -> dict[str, float]:
    """Estimate d^T H d for several changes of several weights, in one pass of draws.

    For an error of the weight it is the mean over draws of (g . d)^2, or of the sum over output
    channels of that (a channel's part, written with the gradient at the op's output and the
    output's change, is ModelOpt's score). See :func:`_weighed` for which counts how much.

    Noise of the input meets the gradient at the op's output, G, which nobody hands over. But g is
    the sum over rows of G x, so that |g|^2 of a channel is its sum of G^2 times the input's
    variance, where rows are independent. The part of g along the mean of the inputs is left out:
    there the rows' gradients, which are alike behind a pooling, add up.

    Args:
        where: Where gradients are taken.
        changes: Weight name -> label -> change.
        axes: Weight name -> the channel axis of its gradient.
        seed: Of the draws.
        begin_draw: Called before each.

    Returns:
        Label -> the estimate.
    """
    sums = {label: _Sums() for wanted in changes.values() for label in wanted}
    count = 0

    def sink(name: str, gradient: Array) -> None:
        rows = to_matrix(gradient, axes[name])
        xp = array_namespace(rows)
        for label, change in changes[name].items():
            found = sums[label]
            error = xp.asarray(change.error(), device=device(rows))
            # One share per output channel.
            shares = xp.sum(rows * error, axis=1)
            found.by_channel += float(xp.sum(shares * shares))
            found.whole += float(xp.sum(shares)) ** 2
            if change.noise is not None:
                squares = _off_mean(rows, change.mean)
                noise = xp.asarray(change.noise, device=device(rows))
                found.noise += float(xp.sum(squares * noise))

    for draw in range(DRAWS):
        begin_draw()
        count += where.run(tuple(changes), sink, seed=seed + draw)
    return _weighed(sums, max(1, count), len(changes))


def _off_mean(rows: Array, mean: np.ndarray | None) -> Array:
    """Return the squared length of each channel's gradient without its part along the mean.

    Args:
        rows: The gradient, (channels, features).
        mean: Direction of the input's mean, (groups, features); None for none.
    """
    xp = array_namespace(rows)
    squares = xp.sum(rows * rows, axis=1)
    if mean is None:
        return squares
    groups, features = mean.shape
    direction = xp.asarray(mean, device=device(rows))[:, None, :]
    along = xp.sum(xp.reshape(rows, (groups, -1, features)) * direction, axis=2)
    return squares - xp.reshape(along, (-1,)) ** 2


def _weighed(sums: Mapping[str, _Sums], count: int, weights: int) -> dict[str, float]:
    """Return the estimates, each between its sum by channels and its sum of all together.

    Both have the same mean over independent rounding errors. The sum by channels leaves the
    products between channels out: it is steady, and wrong where a few directions of the outputs
    hold most of H (a pooled embedding, a few classes), because there the products of the errors
    that are do not cancel. All together is right, and of few draws: its logarithm has the variance
    2 / count, that of a mean of ``count`` squares of normal numbers. How far the two lie apart
    beyond that, over all changes, says how much the products matter, and each estimate is shrunk
    towards its sum by channels accordingly (empirical Bayes: Efron & Morris 1973). Where chance
    alone may put them as far apart, as it does in a language model, the sum by channels stands.

    Args:
        sums: By label.
        count: Draws times batches.
        weights: Number of weights; the changes of one share their draws.
    """
    apart = {}
    for label, found in sums.items():
        if found.by_channel > 0 and found.whole > 0:
            # The mean of the logarithm of such a mean is -1 / count.
            apart[label] = np.log(found.whole / found.by_channel) + 1.0 / count
    by_chance = 2.0 / count
    spread = float(np.mean(np.square(list(apart.values())))) if apart else 0.0
    # A mean of squares of so many normal numbers scatters by sqrt(2 / number) of itself.
    chance_at_most = by_chance * (1.0 + SURE * (2.0 / max(1, weights)) ** 0.5)
    beyond = max(0.0, spread - by_chance) if spread > chance_at_most else 0.0
    trust = beyond / (beyond + by_chance)
    estimates = {}
    for label, found in sums.items():
        of_weight = found.by_channel * np.exp(trust * apart.get(label, 0.0))
        estimates[label] = float((of_weight + found.noise) / count)
    return estimates


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
