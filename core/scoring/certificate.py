"""How sure it is that a candidate keeps the goal on new data, from scores of single held-out
samples.

A sample's excess is what it loses beyond what is tolerated, x_i(t) = d_i - t for an absolute
tolerance t, and d_i - t |f_i| for a share of the float score, where d_i is the float model's score
of the sample less the candidate's (turned round where lower is better) and f_i the float model's.
The samples are draws of the data that the model will meet; the goal is kept on that data exactly if
E[x_i] <= 0. The claim to be refuted is E[x_i] > 0, "the goal is missed". Who bets against it has
the capital

    K_n = sum over b of w_b * prod_{i <= n} (1 - l_b x_i),      0 <= l_b < 1 / r,    r the largest
    possible x,

which under the claim is a non-negative supermartingale that starts at 1: each factor has a
conditional mean of at most 1. By Ville's inequality K ever reaches 1/error with a probability of at
most ``error``, however often it is looked at and whenever one stops (Waudby-Smith and Ramdas 2024,
"Estimating means of bounded random variables by betting", J. R. Stat. Soc. B 86(1), Theorem 1 and
section 4; Howard, Ramdas, McAuliffe and Sekhon 2021, "Time-uniform, nonparametric, nonasymptotic
confidence sequences", Ann. Stat. 49(2), for the inequality). The bound on the loss is the least t
that is refuted. Nothing is assumed of the scores' distribution but their range.

Half of the capital follows the bet that would have grown most on the samples of the search, which
are others; the rest is spread over fixed bets, so that the worst of guesses costs a factor
(``len(BETS) / (1 - LEAD)``, 16) and never the guarantee.

Selection. The candidate was chosen by samples of the search, which say nothing of the held-out
ones: that costs nothing. Where a winner is refused on the held-out samples the next one is examined
on the same: the j-th has the error ``error / (j (j + 1))``, and all together have ``error``.
Nothing but the refusal goes back to the search, so that along the path of refusals each next winner
is fixed before the held-out samples are looked at, and the union bound holds however many
candidates were tried.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from octavo.core.contract.criterion import SampleGoal
from octavo.core.errors import EvaluationError

from .betting import largest_capital

BETS = np.array([0.02, 0.05, 0.1, 0.2, 0.35, 0.55, 0.8, 0.99])
"""Fixed bets as shares of the largest: small ones win against many disagreements, large ones where
there are none."""

MANY = 10**6
"""Samples from which on it makes no difference how many more it would take."""

LEAD = 0.5
"""Share of the capital that follows the bet learned from other samples."""

METHOD = "betting, time-uniform (Waudby-Smith and Ramdas 2024)"


@dataclass(frozen=True, slots=True)
class OtherSamples:
    """Scores of samples of the search, from which a bet on the held-out ones is learned.

    Attributes:
        reference: The float model's, shape (samples,).
        scores: The candidate's, in the same order.
    """

    reference: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True, slots=True)
class _Losses:
    """What each sample lost, and what one unit of tolerance allows it to lose."""

    lost: np.ndarray
    scale: np.ndarray

    def excess(self, tolerance: float) -> np.ndarray:
        """Return what each sample loses beyond a tolerance."""
        return self.lost - tolerance * self.scale


@dataclass(frozen=True, slots=True)
class Certificate:
    """What can be said of a candidate's loss on new data.

    Attributes:
        holds: Whether the loss is within the tolerance, with ``confidence``.
        confidence: The probability, over all winners that were examined.
        bound: The loss is at most this, in the tolerance's unit; None where nothing bounds it.
        loss: The loss that was observed on the samples.
        tolerance: What is tolerated.
        mode: The unit of the three: ``relative`` or ``absolute``.
        samples: Held-out samples.
        tries: Winners that were examined on them, this one among them.
        method: Where the bound comes from.
        reason: All that in one line; or why there is no bound, and what it would take.
    """

    holds: bool
    confidence: float
    bound: float | None
    loss: float | None
    tolerance: float
    mode: str
    samples: int
    tries: int
    method: str
    reason: str


class Certifier:
    """Bounds the loss of candidates on samples that their search did not see.

    Args:
        goal: What is to be certified.
        reference: The float model's score of each sample, shape (samples,).

    Raises:
        EvaluationError: If a score is outside the goal's range.
    """

    def __init__(self, goal: SampleGoal, reference: np.ndarray) -> None:
        self.goal = goal
        self.reference = np.asarray(reference, np.float64)
        found = score_range(goal, self.reference)
        if found is None:
            raise EvaluationError(
                "the range of a sample's score is unknown: say accuracy.score_range, its least "
                "and greatest value"
            )
        self.low, self.high = found
        self._check(self.reference)
        self._scale = self._scaled(self.reference)

    def certify(
        self, scores: np.ndarray, tries: int = 1, lead: OtherSamples | None = None
    ) -> Certificate:
        """Bound the loss of a candidate.

        Args:
            scores: Its score of each sample, shape (samples,), in the reference's order.
            tries: How many winners were examined on these samples, this one among them.
            lead: Scores of other samples, from which the bet is learned.

        Raises:
            EvaluationError: If a score is outside the range.
        """
        goal = self.goal
        losses = self._losses(self.reference, scores)
        bound = self._bound(losses, self._error(tries), self._learned_from(lead))
        loss = float(losses.lost.mean())
        if goal.mode == "relative":
            loss /= abs(float(self.reference.mean())) or 1.0
        samples = len(scores)
        said = "cannot be bounded" if bound is None else f"is at most {bound:.4g}"
        number = f", the winner number {tries}" if tries > 1 else ""
        reason = (
            f"with {goal.confidence:.4g} confidence the loss on new data like this {said} "
            f"{goal.mode} ({goal.tolerance:g} is tolerated; {loss:.4g} on {samples} held-out "
            f"samples{number})"
        )
        return Certificate(
            self.holds(scores, tries, lead),
            goal.confidence,
            bound,
            loss,
            goal.tolerance,
            goal.mode,
            samples,
            tries,
            METHOD,
            reason,
        )

    def holds(
        self, scores: np.ndarray, tries: int = 1, lead: OtherSamples | None = None
    ) -> bool:
        """Return whether a candidate keeps the goal on new data, so surely.

        The arguments are :meth:`certify`'s.
        """
        losses = self._losses(self.reference, scores)
        capital = self._log_capital(
            losses, self.goal.tolerance, self._learned_from(lead)
        )
        return capital >= math.log(1 / self._error(tries))

    def foreseen(self, scores: np.ndarray, samples: int) -> float:
        """Return the margin to the goal that is to be expected on so many other samples.

        Args:
            scores: A candidate's score of each sample of the search.
            samples: How many held-out samples there are.

        Returns:
            (tolerance - bound) / tolerance, the tolerance being above 0.
        """
        # Capital grows by a factor a sample: what n samples ought to reach, m of them reach the
        # (m / n)-th power of.
        error = self._error(1) ** (len(self.reference) / samples)
        losses = self._losses(self.reference, scores)
        bound = self._bound(losses, error, losses)
        if bound is None:
            bound = self._largest_loss()
        tolerance = self.goal.tolerance
        return (tolerance - bound) / tolerance

    def samples_needed(self) -> int:
        """Return how many samples certify a candidate that loses nothing on any.

        Returns:
            More than there are, if these are too few.
        """
        wanted = math.log(1 / self._error(1))
        samples = 8
        while samples < MANY:
            flawless = _Losses(np.zeros(samples), np.resize(self._scale, samples))
            if self._log_capital(flawless, self.goal.tolerance, flawless) >= wanted:
                break
            # To 5 %: it is a hint of how many to add.
            samples = math.ceil(samples * 1.05)
        return samples

    def _error(self, tries: int) -> float:
        """Return what the winner of that number may be wrong by: 1/2 + 1/6 + 1/12 + ... = 1."""
        return (1 - self.goal.confidence) / (tries * (tries + 1))

    def _learned_from(self, lead: OtherSamples | None) -> _Losses | None:
        return None if lead is None else self._losses(lead.reference, lead.scores)

    def _losses(self, reference: np.ndarray, scores: np.ndarray) -> _Losses:
        self._check(scores)
        sign = 1.0 if self.goal.higher_is_better else -1.0
        lost = np.asarray(sign * (reference - scores), np.float64)
        return _Losses(lost, self._scaled(reference))

    def _largest_loss(self) -> float:
        """Return all that can be lost, in the tolerance's unit."""
        return 1.0 if self.goal.mode == "relative" else self.high - self.low

    def _scaled(self, reference: np.ndarray) -> np.ndarray:
        """Return what one unit of tolerance allows each sample to lose."""
        if self.goal.mode == "absolute":
            return np.ones(len(reference))
        # |E f| >= sign * E f whatever the sign: the claim that is refuted is no smaller than the
        # one that counts.
        sign = 1.0 if self.reference.mean() >= 0 else -1.0
        return np.asarray(reference * sign)

    def _room(self, tolerance: float) -> float:
        """Return the largest excess of a sample at a tolerance."""
        sign = 1.0 if self.goal.higher_is_better else -1.0
        # The excess is linear in both scores, so the largest lies in a corner of their range.
        ends = (self.low, self.high)
        corners = np.array([(reference, score) for reference in ends for score in ends])
        references = corners[:, 0]
        lost = sign * (references - corners[:, 1])
        excess = lost - tolerance * self._scaled(references)
        return float(excess.max())

    def _bound(
        self, losses: _Losses, error: float, lead: _Losses | None
    ) -> float | None:
        """Return the least tolerance at which the claim of a miss is refuted.

        Returns:
            None where none below a full loss is.
        """
        wanted = math.log(1 / error)

        def is_refuted(tolerance: float) -> bool:
            return self._log_capital(losses, tolerance, lead) >= wanted

        low = 0.0
        # At a full loss nothing is left to bet on.
        high = self._largest_loss() * (1 - 1e-9)
        if not is_refuted(high):
            return None
        # 30 halvings: to a billionth of the range.
        for _ in range(30):
            middle = (low + high) / 2
            if is_refuted(middle):
                high = middle
            else:
                low = middle
        return high

    def _log_capital(
        self, losses: _Losses, tolerance: float, lead: _Losses | None
    ) -> float:
        """Return the logarithm of the largest capital on the way.

        Args:
            losses: Of the samples that are bet on.
            tolerance: The bet is that the goal is kept at this tolerance.
            lead: Losses of other samples, from which one more bet is learned.
        """
        room = self._room(tolerance)
        if room <= 0:
            return math.inf
        shares = np.full(len(BETS), 1 / len(BETS))
        bets = BETS
        if lead is not None:
            learned = _best_bet(lead.excess(tolerance) / room)
            shares = np.append((1 - LEAD) * shares, LEAD)
            bets = np.append(bets, learned)
        stakes = bets[:, None] * (losses.excess(tolerance) / room)
        paths = np.cumsum(np.log1p(-stakes), axis=1) + np.log(shares)[:, None]
        return largest_capital(paths)

    def _check(self, scores: np.ndarray) -> None:
        slack = 1e-9 * max(1.0, abs(self.low), abs(self.high))
        least, greatest = scores.min(), scores.max()
        if least < self.low - slack or greatest > self.high + slack:
            raise EvaluationError(
                f"a sample scores {least:g} to {greatest:g}, outside the range of {self.low:g} to "
                f"{self.high:g}: say accuracy.score_range, the least and the greatest score of a "
                "sample"
            )


def score_range(goal: SampleGoal, reference: np.ndarray) -> tuple[float, float] | None:
    """Return the range of a sample's score; None where it is unknown.

    It is what was said, or 0 to 1 where all scores are 0 or 1.
    """
    if goal.score_range is not None:
        return goal.score_range
    is_all_or_nothing = bool(np.isin(reference, (0.0, 1.0)).all())
    return (0.0, 1.0) if is_all_or_nothing else None


def _best_bet(excess: np.ndarray) -> float:
    """Return the bet under which capital would have grown most on these samples.

    One more sample that loses all it can is reckoned in, so that no bet stakes everything.
    """
    grid = np.linspace(0.03, 0.99, 33)
    on_samples = np.log1p(-grid[:, None] * excess).sum(axis=1)
    growth = on_samples + np.log1p(-grid)
    return float(grid[int(growth.argmax())])
