"""Evaluation that stops early: a candidate is rejected as soon as its samples prove that it misses the goal.

Samples are taken in one fixed shuffled order and compared, each with the float model's own score of it. The loss of a sample
is d = (float score - candidate score), turned so that higher is worse. The goal allows a mean loss of at most ``allowed`` over
all samples. Betting against that claim (Waudby-Smith and Ramdas 2024, "Estimating means of bounded random variables by
betting", section 5: sampling without replacement) gives the capital

    K_t = mean over bets c of prod_{i <= t} (1 + c * (d_i - m_i) / (m_i - a)),     m_i = (n * allowed - sum_{j < i} d_j) / (n - i + 1)

where m_i is what the next sample may lose on average if the claim is true, and a the least that a sample can lose (it cannot
score better than ``best``). If the claim is true K_t is a non-negative supermartingale that starts at 1, so that by Ville's
inequality it ever reaches 1/error with a probability of at most ``error``: the bound may be looked at after every sample. It
needs no upper limit of a loss and no distribution. A candidate is accepted only after all samples, by the criterion itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field

from .errors import ConfigError, EvaluationError
from .evaluation import Evaluation, to_numpy
from .scheme import Frozen

BETS = np.array([0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9])
"""Shares of the capital at stake. Small bets win against noisy small losses, large ones against rare or plain ones."""


class RaceConfig(Frozen):
    """How evaluations may be stopped early.

    Attributes:
        error: Probability with which a candidate that would pass on all samples may be rejected before.
        first: Samples that are scored before the bound is looked at.
        batch: Samples scored between two looks.
        seed: Of the order of samples.
    """

    error: float = Field(default=0.05, gt=0, lt=1)
    first: int = Field(default=64, ge=1)
    batch: int = Field(default=64, ge=1)
    seed: int = Field(default=0, ge=0)


class SampleScore:
    """A score function that can score chosen samples: what racing needs. Called as usual, it scores all of them.

    Args:
        score: ``(model, indices) -> scores``: one finite number for each index, in order; their mean is the score.
        samples: How many samples there are.
        best: The best score that one sample can get (1 for accuracy or a reciprocal rank, 0 for a loss such as a negative
            log-likelihood). None where there is no limit: such a score is not raced.
    """

    def __init__(self, score: Callable[[Any, np.ndarray], Any], samples: int, *, best: float | None = 1.0) -> None:
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
        scores = np.asarray(to_numpy(self.score(model, np.asarray(indices))), dtype=np.float64)
        if scores.shape != (len(indices),):
            raise EvaluationError(
                f"a sample score must return one number for each index: {len(indices)} were asked, shape {scores.shape} came"
            )
        if not np.isfinite(scores).all():
            raise EvaluationError(f"sample {int(np.asarray(indices)[~np.isfinite(scores)][0])} has a score that is not finite")
        return scores

    def __call__(self, model: Any) -> Evaluation:
        """Score all samples."""
        scores = self.of(model, np.arange(self.samples))
        return Evaluation(float(scores.mean()), scores)


@dataclass(frozen=True, slots=True)
class Rejection:
    """An evaluation that was stopped: the candidate misses the goal.

    Attributes:
        value: Estimate of the score on all samples: the float model's score less the mean loss seen.
        used: Samples that were scored.
        share: The same as a share of all.
        doubt: At most so probable is evidence like this if the candidate would pass; 0 where it can no longer pass at all.
    """

    value: float
    used: int
    share: float
    doubt: float

    @property
    def reason(self) -> str:
        """One line for the log."""
        sure = "it can no longer pass" if self.doubt == 0 else f"doubt {self.doubt:.2g}"
        return f"rejected after {self.used} samples ({self.share:.0%}): about {self.value:.6g}; {sure}"


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
        self, reference: np.ndarray, allowed: float, best: float, *, higher_is_better: bool = True, config: RaceConfig | None = None
    ) -> None:
        self.config = config or RaceConfig()
        self._sign = 1.0 if higher_is_better else -1.0
        self._reference = np.asarray(reference, dtype=np.float64)
        self._allowed = allowed
        self._best = best
        self.order = np.random.default_rng(self.config.seed).permutation(len(self._reference))
        ordered = self._sign * (self._reference[self.order] - best)
        if ordered.max(initial=0.0) > 1e-9:
            worst = int(self.order[ordered.argmax()])
            raise ConfigError(f"sample {worst} of the float model scores {self._reference[worst]:g}, better than the best, {best:g}")
        # The least that any sample not yet scored can lose: known before it is scored, as the bet demands.
        self._least = np.minimum.accumulate(ordered[::-1])[::-1]

    def run(self, score: Callable[[np.ndarray], np.ndarray]) -> Evaluation | Rejection:
        """Score a candidate's samples until the bound rejects it, or all are scored.

        Args:
            score: Sample indices -> the candidate's scores of them.

        Returns:
            An :class:`Evaluation` over all samples in their own order, or a :class:`Rejection`.
        """
        n = len(self._reference)
        scores = np.empty(n)
        losses = np.empty(n)
        logs = np.zeros(len(BETS))
        done, total = 0, 0.0
        while done < n:
            until = min(n, self.config.first if not done else done + self.config.batch)
            indices = self.order[done:until]
            scores[indices] = score(indices)
            if (self._sign * (scores[indices] - self._best)).max() > 1e-9:
                raise EvaluationError(
                    f"a sample of a candidate scores better than the best, {self._best:g}: say the true best of the sample score"
                )
            losses[done:until] = self._sign * (self._reference[indices] - scores[indices])
            doubt, logs = self._doubt(losses[done:until], done, total, logs)
            total += float(losses[done:until].sum())
            done = until
            if doubt <= self.config.error and done < n:
                value = float(self._reference.mean()) - self._sign * total / done
                return Rejection(value, done, done / n, doubt)
        return Evaluation(float(scores.mean()), scores)

    def _doubt(self, losses: np.ndarray, done: int, total: float, logs: np.ndarray) -> tuple[float, np.ndarray]:
        """Return 1 / (largest capital within these samples), and each bet's capital (its logarithm) after them."""
        n = len(self._reference)
        before = total + np.concatenate([[0.0], np.cumsum(losses)[:-1]])
        left = n - done - np.arange(len(losses))
        fair = (n * self._allowed - before) / left
        room = fair - self._least[done : done + len(losses)]
        tolerance = 1e-9 * max(1.0, abs(self._allowed))
        # Where even the best scores on all that is left would not do, nothing is left to doubt.
        hopeless = bool((room < -tolerance).any())
        if left[-1] > 1:
            after = (n * self._allowed - total - float(losses.sum())) / (left[-1] - 1)
            hopeless = hopeless or after - self._least[done + len(losses)] < -tolerance
        if hopeless:
            return 0.0, logs
        growth = np.log1p(np.maximum(BETS[:, None] * ((losses - fair) / np.maximum(room, tolerance))[None], -1.0 + 1e-12))
        paths = logs[:, None] + np.cumsum(growth, axis=1)
        top = paths.max(axis=0)
        capital = top + np.log(np.exp(paths - top).mean(axis=0))
        return math.exp(-max(0.0, float(capital.max()))), paths[:, -1]
