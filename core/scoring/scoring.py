"""From a candidate to checked scores: the user's function, where it runs, and how early it may
stop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from octavo.core.contract.adapter import Candidate
from octavo.core.contract.criterion import Criterion
from octavo.core.errors import EvaluationError

from .evaluation import ArrayModel, Evaluation, Scores, check_scores
from .executor import Executor
from .racing import Race, RaceConfig, Rejection, SampleScore

REPEATED = 0.1
"""Share of the samples that are scored twice to see whether the score function is deterministic."""

FEWEST_REPEATED = 64
"""How many of them at least."""

MOST_KEPT = 2000
"""Samples whose scores a history keeps."""


@dataclass(frozen=True, slots=True)
class Holdout:
    """Scores on data that the search never saw.

    Attributes:
        baseline: The float model's.
        best: The winner's.
        passed: The criterion's verdict on them.
        reason: The figures that decided.
    """

    baseline: Mapping[str, float]
    best: Mapping[str, float]
    passed: bool
    reason: str


@dataclass
class Scoring:
    """Scores candidates.

    Attributes:
        score: The user's function, or a :class:`SampleScore`.
        executor: Where it runs.
        native: Hand it the backend's own model; False hands it arrays in, arrays out.
        metric: The name of a lone score.
        held_out: Scores the data that is kept from the search; None where there is none.
    """

    score: Callable[[Any], Any]
    executor: Executor
    native: bool = True
    metric: str = "score"
    held_out: Callable[[Any], Any] | None = None
    _race: Race | None = None
    _samples: dict[str, int] = field(default_factory=dict)

    def full(self, candidate: Candidate) -> Scores:
        """Score all samples.

        Raises:
            EvaluationError: If what the function returns is no score.
        """
        return self._run(self.score, candidate, "")

    def repeats(self, candidate: Candidate, scores: Scores) -> bool:
        """Score a share of the samples again; True if every one of them comes out as in ``scores``.

        False where single samples cannot be scored. Runs over other batch sizes round otherwise:
        differences of that order count as none.
        """
        if not isinstance(self.score, SampleScore) or scores.per_sample is None:
            return False
        samples = self.score.samples
        count = min(samples, max(FEWEST_REPEATED, round(REPEATED * samples)))
        # Drawn, for samples often come in an order: the first may be the ones that no randomness
        # touches.
        part = np.sort(np.random.default_rng(samples).permutation(samples)[:count])
        return self._come_out_as(candidate, part, scores.per_sample[part])

    def _come_out_as(
        self, candidate: Candidate, indices: np.ndarray, before: np.ndarray
    ) -> bool:
        """Score some samples; return whether they are what they were, up to rounding."""
        again = self.executor.submit(
            _some, self.score, candidate, self.native, indices
        ).result()
        return bool(np.allclose(again, before, rtol=1e-5, atol=1e-8))

    def _run(
        self, score: Callable[[Any], Any], candidate: Candidate, which: str
    ) -> Scores:
        raw = self.executor.submit(_evaluate, score, candidate, self.native).result()
        found = check_scores(raw, self.metric)
        if found.per_sample is not None:
            count = len(found.per_sample)
            before = self._samples.setdefault(which, count)
            if count != before:
                raise EvaluationError(
                    f"Evaluation.per_sample holds {count} {which}samples, and {before} the time "
                    "before: they are "
                    "compared one by one, so each evaluation scores the same samples in the same "
                    "order"
                )
        return found

    def prepare_race(
        self,
        baseline: Scores | None,
        reference: Candidate,
        criterion: Criterion,
        config: RaceConfig,
    ) -> None:
        """Make ready to stop evaluations early, where the score function scores samples and the
        criterion is a mean loss.

        Args:
            baseline: The float model's scores; None scores it again (after a resume).
            reference: The float model.
            criterion: Says the mean loss that it allows.
            config: Settings.
        """
        if not isinstance(self.score, SampleScore) or self.score.best is None:
            return
        scores = baseline or self.full(reference)
        goal = criterion.allowed(scores.metrics)
        if goal is not None and scores.per_sample is not None:
            allowed, higher = goal
            self._race = Race(
                scores.per_sample,
                allowed,
                self.score.best,
                higher_is_better=higher,
                config=config,
            )

    def raced(self, candidate: Candidate) -> Scores | Rejection:
        """Score a candidate; stop as soon as it is sure to miss the goal, if that can be told."""
        if self._race is None:
            return self.full(candidate)
        started = self.executor.submit(
            _race, self._race, self.score, candidate, self.native
        )
        outcome = started.result()
        if isinstance(outcome, Rejection):
            return outcome
        return check_scores(outcome, self.metric)

    def part_is_alike(
        self,
        candidate: Candidate,
        kept: Mapping[str, Any] | None,
        race: RaceConfig | None,
    ) -> bool:
        """True if single samples can be scored, and those that an earlier run kept come out as they
        did.

        False where all must be scored: for a race, which compares with every sample of the float
        model.

        Args:
            candidate: The float model.
            kept: What :func:`first_samples` gave; None where it was not kept.
            race: How evaluations may be stopped early.
        """
        if not isinstance(self.score, SampleScore):
            return False
        is_raced = race is not None and self.score.best is not None
        if is_raced or kept is None or kept["count"] != self.score.samples:
            return False
        before = np.asarray(kept["first"])
        return (
            self._come_out_as(candidate, np.arange(len(before)), before)
            and len(before) > 0
        )

    def held_out_scores(self, candidate: Candidate) -> Scores:
        """Score the data that is kept from the search; there must be some."""
        assert self.held_out is not None
        return self._run(self.held_out, candidate, "held-out ")


def first_samples(scores: Scores) -> dict[str, Any] | None:
    """Return how many samples were scored, and the scores of the first of them, JSON-ready: what a
    later run is compared with."""
    if scores.per_sample is None:
        return None
    count = len(scores.per_sample)
    first = min(count, MOST_KEPT, max(FEWEST_REPEATED, round(REPEATED * count)))
    return {"count": count, "first": [float(v) for v in scores.per_sample[:first]]}


# Functions of their own, so that a child process can be given them.


def _model(candidate: Candidate, native: bool) -> Any:
    return candidate.native if native else ArrayModel(candidate)


def _evaluate(score: Callable[[Any], Any], candidate: Candidate, native: bool) -> Any:
    return score(_model(candidate, native))


def _some(
    score: SampleScore, candidate: Candidate, native: bool, indices: np.ndarray
) -> np.ndarray:
    return score.of(_model(candidate, native), indices)


def _race(
    race: Race, score: SampleScore, candidate: Candidate, native: bool
) -> Evaluation | Rejection:
    model = _model(candidate, native)
    return race.run(lambda indices: score.of(model, indices))


__all__ = ["Holdout", "Scoring"]
