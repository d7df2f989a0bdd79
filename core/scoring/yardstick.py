"""The float model's score as a yardstick: candidates scored by the same function are judged against
it, however it varies."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from octavo.core.contract.adapter import Candidate
from octavo.core.contract.criterion import Criterion
from octavo.core.errors import EvaluationError, OctavoError

from .evaluation import Scores
from .noise import FEWEST, Metrics, Noise, mean_of

SECONDS = 600.0
"""What repeats of one model's evaluation may take where the run has no time limit: a score that
varies must not cost a night."""

SHARE = 0.1
"""The same as a share of the run's time limit."""

SEARCH_ERROR = 0.25
"""Probability with which some candidate of a whole search passes by its own noise alone. The
confirmation stands behind it."""

UNLIKE = 0.02
"""By how many tolerated losses a model that was saved and loaded may score differently before the
score is held to vary."""

CONFIRM_ERROR = 0.1
"""Probability with which a confirmation lets a candidate pass by noise alone, over all winners that
are tried."""


@dataclass(frozen=True)
class Judged:
    """A candidate's verdict.

    Attributes:
        scores: Of its first evaluation.
        metrics: The mean of all.
        runs: How many there were.
        passed: Good enough, and by more than what noise could do.
        margin: Distance to the goal less what noise asks for.
        reason: The figures that decided.
    """

    scores: Scores
    metrics: Metrics
    runs: int
    passed: bool
    margin: float
    reason: str


@dataclass
class Yardstick:
    """Scores the float model, as often as the score's noise asks for, and judges candidates against
    it.

    Attributes:
        score: Evaluates a model.
        criterion: Judges.
        seconds: What repeated evaluations of one model may take.
        what: Names the score in errors.
        foreseen: The margin that a candidate's scores let expect where the verdict is given on
            other data; None where it is not.
    """

    score: Callable[[Candidate], Scores]
    criterion: Criterion
    seconds: float = SECONDS
    what: str = "the score function"
    foreseen: Callable[[Scores], float] | None = None
    scores: Scores | None = None
    baseline: Metrics = field(default_factory=dict)
    noise: Noise = field(default_factory=Noise)
    _runs: list[Metrics] = field(default_factory=list)
    _took: float = 0.0

    def measure(self, reference: Candidate, runs: int) -> None:
        """Score the float model: so many times, and more if the scores differ.

        Raises:
            EvaluationError: If the score function fails on it.
            ConfigError: If the criterion makes no sense at its score.
        """
        while len(self._runs) < runs:
            self._again(reference)
        self.criterion.check_baseline(self._runs[0])
        self._settle()
        while self._wants_another():
            self._again(reference)
            self._settle()

    def _wants_another(self) -> bool:
        """Return whether the float model is to be scored once more: it varies, and time is left."""
        wanted = max(FEWEST, self.noise.repeats)
        return (
            bool(self.noise) and len(self._runs) < wanted and self._took < self.seconds
        )

    def restore(self, metrics: Metrics, noise: Noise) -> None:
        """Take the float model's score from a history."""
        self.criterion.check_baseline(metrics)
        self.baseline = metrics
        self.noise = noise

    def again(self, reference: Candidate) -> Scores:
        """Score the float model once more as a run goes on: for a comparison, and to know how long
        it takes."""
        began = time.perf_counter()
        self.scores = self.score(reference)
        self._took += time.perf_counter() - began
        return self.scores

    def judge(self, candidate: Candidate, first: Scores, looks: int) -> Judged:
        """Judge a candidate of the search; one that may yet pass is scored again, until that is
        settled.

        Args:
            candidate: The model.
            first: Its first scores.
            looks: How many candidates were looked at, this one among them: each has its share of
                the error.
        """
        runs = [first.metrics]
        most = self._most()
        # The mean is looked at when the number of evaluations has doubled.
        error = SEARCH_ERROR / looks / max(1, most.bit_length())
        while True:
            found = self._verdict(first, runs, error)
            # What a full number of repeats would ask for, and by how much the mean may still rise.
            reachable = self.noise.needed(most, error) - self.noise.deviations(
                len(runs)
            )
            raw_margin = found.margin + self.noise.needed(len(runs), error)
            is_out_of_reach = raw_margin < reachable
            if found.passed or len(runs) >= most or is_out_of_reach:
                return self._with_foresight(found)
            target = min(most, 2 * len(runs))
            runs += [self.score(candidate).metrics for _ in range(target - len(runs))]

    def _with_foresight(self, found: Judged) -> Judged:
        """Let a candidate pass only if it may be expected to be certified."""
        if self.foreseen is None:
            return found
        margin = min(found.margin, self.foreseen(found.scores))
        return replace(found, margin=margin, passed=found.passed and margin >= 0)

    def confirm(self, candidate: Candidate, first: Scores, tries: int) -> Judged:
        """Judge a winner by evaluations of its own, as many as the noise asks for.

        Args:
            candidate: The model.
            first: Its first scores, which nothing was chosen by.
            tries: How many winners were tried, this one among them.
        """
        runs = [first.metrics]
        runs += [self.score(candidate).metrics for _ in range(self._most() - 1)]
        # 1/2 + 1/6 + 1/12 + ... = 1: however many winners are tried, the errors add up to no more.
        return self._verdict(first, runs, CONFIRM_ERROR / (tries * (tries + 1)))

    def doubt(self, reference: Candidate, before: Metrics, now: Metrics) -> None:
        """Score the float model more often where one candidate scored differently a second time.

        Two equal scores of the float model do not prove that a score is exact: a count of right
        answers meets itself by chance.
        """
        margin_before = self.criterion.judge(before, self.baseline).margin
        margin_now = self.criterion.judge(now, self.baseline).margin
        if not self.noise and abs(margin_before - margin_now) > UNLIKE:
            self.measure(reference, FEWEST)

    @property
    def seconds_each(self) -> float:
        """Seconds that an evaluation of the float model took; 0 where it was not scored in this
        run."""
        return self._took / max(1, len(self._runs))

    @property
    def confirmation_seconds(self) -> float:
        """What a winner's confirmation is believed to take: as many evaluations as the noise asks
        for."""
        return self._most() * self.seconds_each

    def warning(self) -> str:
        """Return what the user should know of a score that varies; '' where it does not."""
        too_much = self.criterion.noise(tuple(self._runs))
        return "; ".join(filter(None, (too_much, self.explain())))

    def explain(self) -> str:
        """Say how the score varies and what was done about it; '' where it does not."""
        if not self.noise:
            return ""
        return (
            f"the score varies between evaluations of one model, by {self.noise.deviation:.2g} of "
            "the tolerated "
            f"loss (standard deviation): the float model's is a mean of {self.noise.runs}"
        )

    def _verdict(self, first: Scores, runs: list[Metrics], error: float) -> Judged:
        metrics = mean_of(runs)
        verdict = self.criterion.judge(metrics, self.baseline)
        needed = self.noise.needed(len(runs), error)
        margin = verdict.margin - needed
        passed = verdict.passed and margin >= 0
        reason = verdict.reason
        if self.noise:
            reason += (
                f"; over {len(runs)} evaluations the margin to the goal is "
                f"{verdict.margin:.2g} \u00b1 {needed:.2g} of the tolerated loss"
            )
        return Judged(first, metrics, len(runs), passed, margin, reason)

    def _again(self, reference: Candidate) -> None:
        began = time.perf_counter()
        try:
            found = self.score(reference)
        except OctavoError:
            raise
        except Exception as error:
            raise EvaluationError(
                f"{self.what} fails on the float model: {type(error).__name__}: {error}"
            ) from error
        self._took += time.perf_counter() - began
        self.scores = self.scores or found
        self._runs.append(found.metrics)

    def _settle(self) -> None:
        self.baseline = mean_of(self._runs)
        margins = [
            self.criterion.judge(run, self.baseline).margin for run in self._runs
        ]
        self.noise = Noise.of(margins)

    def _most(self) -> int:
        """Return how often a candidate may be scored: what noise asks for, within the time."""
        repeats = self.noise.repeats
        each = self.seconds_each
        affordable = int(self.seconds / each) if each else repeats
        return max(1, min(repeats, affordable))
