"""Evaluation that stops early: a candidate is rejected as soon as its samples prove that it misses
the goal.

Samples are drawn without replacement in one order that a seed fixes, and compared, each with the
float model's own score of it. The loss of a sample is d = (float score - candidate score), turned
so that higher is worse; it is at least a = (float score - best score), since no sample scores
better than ``best``. The goal allows a mean loss of at most ``allowed`` over all n samples. Each
next sample i is drawn among those that are left with a chance of w_i / W, W the sum of what is left
of the weights w, so that

    y_i = d_i W / w_i - (n * allowed - sum_{j < i} d_j)

has a mean of at most 0 if the claim "the candidate passes" is true, whatever came before. Betting
against the claim (Waudby-Smith and Ramdas 2024, "Estimating means of bounded random variables by
betting", section 5; Waudby-Smith, Stark and Ramdas 2021, "RiLACS", for weights) gives the capital

    K_t = mean over bets of prod_{i <= t} (1 + l_i y_i),     0 <= l_i <= 1 / (the least that -y_i
    can reach)

which is then a non-negative supermartingale that starts at 1, so that by Ville's inequality it ever
reaches 1/error with a
probability of at most ``error``: the bound may be looked at after every sample. It needs no upper
limit of a loss and no distribution. Half of the capital follows the bet that the samples so far
recommend (mean over second moment, predictable), half is spread over fixed shares. A candidate is
accepted only after all samples, by the criterion itself.

Samples with much to gain force small bets. They weigh more, and so come earlier (w = max(1, |a| /
threshold), the threshold such that all weigh 30 % more than alike): what is left can then surprise
less. Alike where all can gain alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydantic import Field

from octavo.core.errors import ConfigError, EvaluationError
from octavo.core.numerics.arrays import to_numpy
from octavo.core.values.scheme import Frozen

from .betting import Bettors
from .evaluation import Evaluation

EXTRA = 0.3
"""Weight that samples with much to gain have beyond an equal one, all together."""

EXACT = 1e-9
"""Differences of scores up to this are rounding."""


class RaceConfig(Frozen):
    """How evaluations may be stopped early.

    Attributes:
        error: Probability with which a candidate that would pass on all samples may be rejected
            before.
        first: Samples that are scored before the bound is looked at.
        batch: Samples scored between two looks.
        seed: Of the order of samples.
    """

    error: float = Field(default=0.05, gt=0, lt=1)
    first: int = Field(default=64, ge=1, lt=2**63)
    batch: int = Field(default=64, ge=1, lt=2**63)
    seed: int = Field(default=0, ge=0, lt=2**63)


class SampleScore:
    """A score function that can score chosen samples: what racing needs. Called as usual, it scores
    all of them.

    Args:
        score: ``(model, indices) -> scores``: one finite number for each index, in order; their
            mean is the score.
        samples: How many samples there are.
        best: The best score that one sample can get (1 for accuracy or a reciprocal rank, 0 for a
            loss such as a negative log-likelihood). None where there is no limit: such a score is
            not raced.
    """

    def __init__(
        self,
        score: Callable[[Any, np.ndarray], Any],
        samples: int,
        *,
        best: float | None = 1.0,
    ) -> None:
        if samples < 1:
            raise ConfigError(f"a score needs at least one sample, not {samples}")
        self.score = score
        self.samples = samples
        self.best = best

    def of(self, model: Any, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Score some samples.

        Returns:
            float64, shape (len(indices),).

        Raises:
            EvaluationError: If the function returns another shape, or a number that is not finite.
        """
        raw = self.score(model, np.asarray(indices))
        scores = np.asarray(to_numpy(raw), dtype=np.float64)
        if scores.shape != (len(indices),):
            raise EvaluationError(
                f"a sample score must return one number for each index: {len(indices)} were "
                f"asked, shape {scores.shape} came"
            )
        is_finite = np.isfinite(scores)
        if not is_finite.all():
            first = int(np.asarray(indices)[~is_finite][0])
            raise EvaluationError(f"sample {first} has a score that is not finite")
        return scores

    def __call__(self, model: Any) -> Evaluation:
        """Score all samples."""
        scores = self.of(model, np.arange(self.samples))
        return Evaluation(float(scores.mean()), scores)


@dataclass(frozen=True, slots=True)
class Rejection:
    """An evaluation that was stopped: the candidate misses the goal.

    Attributes:
        value: Estimate of the score on all samples: the float model's score less the mean loss
            seen.
        used: Samples that were scored.
        share: The same as a share of all.
        doubt: At most so probable is evidence like this if the candidate would pass; 0 where it can
            no longer pass at all.
    """

    value: float
    used: int
    share: float
    doubt: float

    @property
    def reason(self) -> str:
        """One line for the log."""
        sure = f"doubt {self.doubt:.2g}"
        if self.doubt == 0:
            sure = "it can no longer pass"
        scored = f"{self.used} samples ({self.share:.0%})"
        return f"rejected after {scored}: about {self.value:.6g}; {sure}"


class Race:
    """Races candidates against the float model.

    Args:
        reference: The float model's score of each sample, shape (samples,).
        allowed: Mean loss that the goal allows, >= 0, in the score's unit.
        best: The best score of a sample, as :class:`SampleScore` has it.
        higher_is_better: The score's direction.
        config: Settings.

    Raises:
        ConfigError: If a float score is better than ``best``.
    """

    def __init__(
        self,
        reference: np.ndarray,
        allowed: float,
        best: float,
        *,
        higher_is_better: bool = True,
        config: RaceConfig | None = None,
    ) -> None:
        self.config = config or RaceConfig()
        self._sign = 1.0 if higher_is_better else -1.0
        self._reference = np.asarray(reference, dtype=np.float64)
        self._allowed = allowed
        self._best = best
        # The least that each sample can lose: what the best score on it would gain.
        least = self._sign * (self._reference - best)
        if least.max(initial=0.0) > EXACT:
            worst = int(least.argmax())
            raise ConfigError(
                f"sample {worst} of the float model scores {self._reference[worst]:g}, better than "
                f"the best, {best:g}"
            )
        weights = _weights(-least)
        random = np.random.default_rng(self.config.seed)
        # Drawing without replacement by weight: the order of exponential times at these rates
        # (Efraimidis and Spirakis 2006).
        times = random.exponential(size=len(weights)) / weights
        self.order = np.argsort(times, kind="stable")
        weights = weights[self.order]
        weights_left = _sums_to_the_end(weights)
        # All of these by place in the order of draws: W / w, the least of d W / w among what is
        # left, and the least that what is left can lose together.
        self._scale = weights_left / weights
        self._least = np.minimum(least[self.order], 0.0)
        least_by_weight = self._least / weights
        self._lowest = _minima_to_the_end(least_by_weight) * weights_left
        self._rest = np.append(_sums_to_the_end(self._least), 0.0)

    def run(self, score: Callable[[np.ndarray], np.ndarray]) -> Evaluation | Rejection:
        """Score a candidate's samples until the bound rejects it, or all are scored.

        Args:
            score: Sample indices -> the candidate's scores of them.

        Returns:
            An :class:`Evaluation` over all samples in their own order, or a :class:`Rejection`.
        """
        n = len(self._reference)
        scores = np.empty(n)
        state = _State()
        done = 0
        while done < n:
            step = self.config.batch if done else self.config.first
            until = min(n, done + step)
            indices = self.order[done:until]
            scores[indices] = score(indices)
            losses = self._losses(indices, scores[indices])
            doubt = self._doubt(losses, done, state)
            done = until
            # After all samples the criterion itself decides.
            if doubt <= self.config.error and done < n:
                mean_loss = state.estimate / state.ones
                value = float(self._reference.mean()) - self._sign * mean_loss
                return Rejection(value, done, done / n, doubt)
        return Evaluation(float(scores.mean()), scores)

    def _losses(self, indices: np.ndarray, scores: np.ndarray) -> np.ndarray:
        above_best = self._sign * (scores - self._best)
        if above_best.max() > EXACT:
            raise EvaluationError(
                f"a sample of a candidate scores better than the best, {self._best:g}: say the "
                "true best of the sample score"
            )
        return np.asarray(self._sign * (self._reference[indices] - scores))

    def _doubt(self, losses: np.ndarray, done: int, state: _State) -> float:
        """Take losses in and return 1 / (largest capital within them).

        Returns:
            0 where the candidate can no longer pass.
        """
        n = len(self._reference)
        until = done + len(losses)
        at = slice(done, until)
        places = np.arange(len(losses))
        budget = n * self._allowed
        scale = self._scale[at]
        sums_so_far = np.cumsum(losses)
        sums_within = np.concatenate([[0.0], sums_so_far[:-1]])
        lost_before = state.total + sums_within
        fair = budget - lost_before
        drawn = losses * scale
        state.take(losses, lost_before + drawn, done + places + scale)
        tolerance = EXACT * n * max(1.0, abs(self._allowed))
        # Where even the best scores on all that is left would not do, nothing is left to doubt.
        was_lost_on_the_way = (self._rest[at] > fair + tolerance).any()
        is_lost = self._rest[until] > budget - state.total + tolerance
        if was_lost_on_the_way or is_lost:
            return 0.0
        left = n - done - places
        gain = (drawn - fair) / left
        # -y can reach no further than this: the largest bet is its inverse.
        reach = (fair - self._lowest[at]) / left
        room = np.maximum(reach, tolerance / n)
        log_capital = state.bettors.log_capital(gain, room)
        return math.exp(-max(0.0, log_capital))


@dataclass
class _State:
    """What a race remembers of a candidate.

    Attributes:
        total: Sum of the losses.
        estimate: Sum over the draws of what each says the losses of all samples add up to.
        ones: The same for losses that are 1 everywhere; estimate / ones is the mean loss.
        bettors: Who bet that the candidate fails.
    """

    total: float = 0.0
    estimate: float = 0.0
    ones: float = 0.0
    bettors: Bettors = field(default_factory=Bettors)

    def take(self, losses: np.ndarray, estimates: np.ndarray, ones: np.ndarray) -> None:
        """Add the losses of some draws, and what each says of the sums over all samples."""
        self.total += float(losses.sum())
        self.estimate += float(estimates.sum())
        self.ones += float(ones.sum())


def _weights(gains: np.ndarray) -> np.ndarray:
    """Return max(1, gain / threshold).

    The threshold is such that they add up to (1 + EXTRA) for each sample, or all gains are below.
    """
    high = float(gains.max(initial=0.0))
    if high <= 0:
        return np.ones(len(gains))
    # At this low end the greatest gain alone makes the mean weight 2 or more.
    low = high / len(gains) / 2
    # Each step halves the interval of the logarithm: 50 of them reach the last digits of a float.
    for _ in range(50):
        middle = math.sqrt(low * high)
        weights = np.maximum(1.0, gains / middle)
        if weights.mean() > 1 + EXTRA:
            low = middle
        else:
            high = middle
    return np.maximum(1.0, gains / high)


def _sums_to_the_end(values: np.ndarray) -> np.ndarray:
    """Return for each place the sum from there to the end."""
    return np.cumsum(values[::-1])[::-1]


def _minima_to_the_end(values: np.ndarray) -> np.ndarray:
    """Return for each place the least value from there to the end."""
    return np.minimum.accumulate(values[::-1])[::-1]
