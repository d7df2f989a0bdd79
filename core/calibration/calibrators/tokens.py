"""Token-wise clipping: the range that leaves out what a few tokens alone reach."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Literal, Self

import numpy as np
from array_api_compat import array_namespace, device
from pydantic import Field

from octavo.core.contract.parts import PartConfig
from octavo.core.errors import DataError
from octavo.core.numerics.affine import Array
from octavo.core.numerics.codec import choose_params, project_values
from octavo.core.values.scheme import QuantSpec

from .histogram import HistogramCalibrator, quantile

_SAMPLE = 2**18
"""Most elements of the tokens that are kept (1 MiB)."""

_TOKENS = 1024
"""Most tokens that are kept."""

_FEWEST = 16
"""Tokens that are kept of however wide a value."""

_RATE = 0.01
"""First step of the fine stage, as a share of the range."""


class TokenConfig(PartConfig):
    """A quantile over tokens of each token's extremes.

    Attributes:
        quantile: Share of the tokens that are not clipped; ``auto`` takes the one of least output
            error.
        step: How far quantiles lie apart that are tried.
        iterations: Steps of gradient descent on both ends, from there on; 0 leaves them.
    """

    kind: Literal["token"] = "token"
    quantile: Annotated[float, Field(gt=0, le=1)] | Literal["auto"] = "auto"
    step: float = Field(0.01, gt=0, lt=1)
    iterations: int = Field(50, ge=0)


class TokenQuantile(HistogramCalibrator):
    """A quantile over tokens of each token's own largest and smallest value.

    Paper: Wei et al. 2022, "Outlier Suppression", section 4.2, token-wise clipping: a few tokens,
    such as separators, hold the outliers, and clipping them costs little. A token is a row along
    the last axis.

    As in the paper: the ends are quantiles of the tokens' extremes, both at one alpha (the coarse
    stage); alpha goes from 1 down in steps of 0.01, to 0.9 at 8 bits, 0.7 at 6 and 0.1 at 4 (its
    reference code), and the one of least output error is taken; from there the range is learned by
    gradient descent, the step's gradient passed straight through the rounding as LSQ+ does (the
    fine stage), and the best iterate is kept.

    Otherwise than in the paper: the error is that of the outputs of the linear ops which read the
    value, ||(Q(X) - X) W^T||^2 over a sample of tokens, and alpha is the value's own; the paper
    takes the whole model's output and one alpha for all. So nothing is run again, the gradient is
    written out, and every backend has both stages. A value that no linear op reads is judged by its
    own error.

    Memory: a histogram and up to a MiB of tokens. Beyond that every second token is dropped, and
    again: which are kept depends on their order.
    """

    config: TokenConfig

    def __init__(self, config: PartConfig, axis: int | None = None) -> None:
        super().__init__(config)
        if axis is not None:
            raise DataError(
                "the token calibrator gives one range for a whole tensor; use granularity tensor "
                "with it"
            )
        self._sample = TokenSample()

    def update(self, x: Array) -> None:
        """Take one batch."""
        super().update(x)
        if self.config.quantile == "auto" and 0 not in x.shape:
            self._sample.update(x)

    def merge(self, other: Self) -> None:
        """Take in another's tokens."""
        super().merge(other)
        self._sample.merge(other._sample)

    def seen(self, x: Array) -> Array:
        """Return both extremes of each token."""
        if 0 in x.shape:
            return x
        xp = array_namespace(x)
        tokens = xp.reshape(x, (-1, x.shape[-1]))
        zeros = 0 * tokens[:, 0]
        smallest = xp.minimum(xp.min(tokens, axis=1), zeros)
        largest = xp.maximum(xp.max(tokens, axis=1), zeros)
        return xp.concat([smallest, largest])

    def range_for(
        self, spec: QuantSpec, readers: Callable[[], Sequence[Array]]
    ) -> tuple[Array, Array]:
        """Return the range of least error at the readers' outputs."""
        if self.config.quantile != "auto" or not self.histogram.counts.size:
            return super().range(spec)
        loss = OutputLoss(self._sample.tokens, readers(), spec)
        tried = [(loss(ends), ends) for ends in self._coarse(spec)]
        # Of equal losses the widest range, whose lower end is the least.
        error, ends = min(tried)
        low, high = loss.learned(ends, error, self.config.iterations)
        seen = self.histogram
        within = np.clip([low, high], seen.low[0], seen.high[0]).astype(np.float32)
        return self._placed(within[0]), self._placed(within[1])

    def range(self, spec: QuantSpec) -> tuple[Array, Array]:
        """Return the range of least error of the value itself, or the quantile that was set."""
        return self.range_for(spec, tuple)

    def _coarse(self, spec: QuantSpec) -> Iterator[tuple[float, float]]:
        """Yield the range of each quantile that is tried, the widest first."""
        (counts,) = self.histogram.counts
        low, high = float(self.histogram.low[0]), float(self.histogram.high[0])
        count = max(1, round(reach(spec) / self.config.step))
        for i in range(count):
            below, above = self._ends(counts, 1 - i * self.config.step)
            yield max(below, low), min(above, high)

    def choose(
        self, counts: np.ndarray, low: float, high: float, spec: QuantSpec
    ) -> tuple[float, float]:
        """Read the quantile off the negative extremes and off the positive ones."""
        assert self.config.quantile != "auto"
        return self._ends(counts, self.config.quantile)

    def _ends(self, counts: np.ndarray, share: float) -> tuple[float, float]:
        edges = self.histogram.edges()
        half = len(counts) // 2
        # Extremes at zero belong to the side that they bound; they fall into the first bin above
        # zero.
        negative = counts[:half]
        positive = counts[half:]
        below = 0.0
        if negative.sum():
            below = quantile(negative, edges, 1 - share)
        above = quantile(positive, edges[half:], share)
        return below, above


def reach(spec: QuantSpec) -> float:
    """Return how far below 1 quantiles are tried: the fewer bits, the more clipping may pay."""
    if spec.bits >= 8:
        return 0.1
    return 0.3 if spec.bits >= 6 else 0.9


class TokenSample:
    """Every n-th token that was met; n doubles when they no longer fit."""

    def __init__(self) -> None:
        self._held: Array = None
        self._count = 0
        self._every = 1
        self._met = 0

    @property
    def tokens(self) -> Array:
        """What is kept, float32, shape (tokens, features)."""
        return self._held[: self._count, :]

    def update(self, x: Array) -> None:
        """Take one batch; tokens are rows along its last axis."""
        xp = array_namespace(x)
        tokens = xp.reshape(x, (-1, x.shape[-1]))
        if self._held is None:
            width = int(tokens.shape[1])
            places = min(_TOKENS, max(_FEWEST, _SAMPLE // width))
            # All of it at once: memory then does not grow from batch to batch.
            self._held = xp.zeros((places, width), dtype=xp.float32, device=device(x))
        first = -self._met % self._every
        self._met += int(tokens.shape[0])
        self._take(tokens[first :: self._every, :])

    def merge(self, other: TokenSample) -> None:
        """Take in another's tokens."""
        if other._held is None:
            return
        if self._held is None:
            xp = array_namespace(other._held)
            self._held = xp.zeros_like(other._held)
        self._met += other._met
        self._take(other.tokens)

    def _take(self, tokens: Array) -> None:
        while self._count + tokens.shape[0] > self._held.shape[0]:
            self._every *= 2
            kept = self.tokens[::2, :]
            self._count = int(kept.shape[0])
            self._held[: self._count, :] = kept + 0
            tokens = tokens[::2, :]
        end = self._count + int(tokens.shape[0])
        self._held[self._count : end, :] = tokens
        self._count = end


class OutputLoss:
    """||(Q(X) - X) W^T||^2 of a range, over tokens X and the weights W of all readers.

    Args:
        tokens: float32, shape (tokens, features).
        readers: Each reader's weight, float32, shape (outputs, features); none for the error of the
            value itself.
        spec: How the value is quantized.
    """

    def __init__(
        self, tokens: Array, readers: Sequence[Array], spec: QuantSpec
    ) -> None:
        self._x = tokens
        self._spec = spec
        self._gram: Array = None
        xp = array_namespace(tokens)
        for weight in readers:
            product = xp.matmul(xp.matrix_transpose(weight), weight)
            self._gram = product if self._gram is None else self._gram + product

    def __call__(self, ends: tuple[float, float]) -> float:
        """Return the loss of a range (low, high)."""
        loss, _ = self._with_gradient(ends)
        return loss

    def learned(
        self, ends: tuple[float, float], loss: float, iterations: int
    ) -> tuple[float, float]:
        """Return the best range that gradient descent (Adam) meets from ``ends`` on.

        Args:
            ends: (low, high), with this loss.
            loss: Of ``ends``.
            iterations: Steps; each is shorter, down to none at the end.
        """
        start = np.asarray(self._effective(ends))
        width = start[1] - start[0]
        if width <= 0:
            return ends
        best = ends
        moved = start
        first, second = np.zeros(2), np.zeros(2)
        for i in range(iterations):
            error, gradient = self._with_gradient((float(moved[0]), float(moved[1])))
            if error < loss:
                loss = error
                best = float(moved[0]), float(moved[1])
            # Adam (Kingma and Ba 2015, algorithm 1) with its usual constants.
            first = 0.9 * first + 0.1 * gradient
            second = 0.999 * second + 0.001 * gradient**2
            mean = first / (1 - 0.9 ** (i + 1))
            deviation = np.sqrt(second / (1 - 0.999 ** (i + 1)))
            rate = _RATE * width * (1 - i / iterations)
            moved = moved - rate * mean / np.maximum(deviation, 1e-30)
            # Every range holds zero.
            moved = np.asarray([min(moved[0], 0.0), max(moved[1], 0.0)])
        return best

    def _effective(self, ends: tuple[float, float]) -> tuple[float, float]:
        """Return the ends that the codes reach: those of a symmetric grid lie alike."""
        if not self._spec.symmetric:
            return ends
        largest = max(-ends[0], ends[1])
        return -largest, largest

    def _with_gradient(self, ends: tuple[float, float]) -> tuple[float, np.ndarray]:
        """Return the loss of a range, and its gradient by (low, high).

        With v = (x - low) / s and q its rounding, x' = low + s q, s = (high - low) / N: where the
        codes reach, dx'/ds = q - v (the rounding passed straight through), and beyond them x' is
        the end itself. Source: Bhalgat et al. 2020, "LSQ+", section 3.1; Esser et al. 2020, "LSQ",
        eq. 3.
        """
        xp = array_namespace(self._x)
        low, high = (self._placed(end) for end in ends)
        params, _ = choose_params(low, high, self._spec, None)
        projected = project_values(self._x, params.scale, params.zero_point, self._spec)
        error = projected - self._x
        through = error if self._gram is None else xp.matmul(error, self._gram)
        loss = float(xp.sum(through * error, dtype=xp.float64))
        bottom, top = self._effective(ends)
        steps = 2**self._spec.bits - (2 if self._spec.symmetric else 1)
        below = xp.astype(self._x < bottom, xp.float32)
        above = xp.astype(self._x > top, xp.float32)
        # x' - x is s (q - v).
        inside = (1 - below - above) * error / params.scale / steps
        by_low = 2 * float(xp.sum(through * (below - inside), dtype=xp.float64))
        by_high = 2 * float(xp.sum(through * (above + inside), dtype=xp.float64))
        if self._spec.symmetric:
            by_both = (by_high - by_low) / 2
            by_low, by_high = -by_both, by_both
        return loss, np.asarray([by_low, by_high])

    def _placed(self, end: float) -> Array:
        xp = array_namespace(self._x)
        return xp.asarray(end, dtype=xp.float32, device=device(self._x))
