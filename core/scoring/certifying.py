"""A run's certificate: what it is made of, and why there can be none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from octavo.core.contract.criterion import Criterion, SampleGoal
from octavo.core.errors import ConfigError

from .certificate import METHOD, Certificate, Certifier, OtherSamples, score_range
from .evaluation import Scores

COARSE = 0.5
"""From how many tolerances on a single sample is worth a word: a coarser score cannot tell a pass
from a miss."""


@dataclass(frozen=True)
class Certifying:
    """Certifies winners on the held-out samples, or says why it cannot.

    Attributes:
        confidence: What was asked for.
        goal: Of the mean over samples; None where the criterion has none.
        why: Why no winner can be certified, and what it takes; '' where one can.
        search: Bounds losses on the search's samples, to foresee what can be certified.
        held_out: Bounds them on the held-out samples.
    """

    confidence: float
    goal: SampleGoal | None
    why: str = ""
    search: Certifier | None = None
    held_out: Certifier | None = None

    def foreseen(self, scores: Scores) -> float:
        """Return the margin that a candidate of the search can be expected to be certified with."""
        if self.search is None or self.held_out is None or scores.per_sample is None:
            return float("inf")
        return self.search.foreseen(scores.per_sample, len(self.held_out.reference))

    def certify(
        self, held_out: Scores, search: Scores | None, tries: int
    ) -> Certificate:
        """Bound a winner's loss on the held-out samples.

        Args:
            held_out: Its scores there.
            search: Its scores on the search's samples, from which the bet is learned; None where it
                has none.
            tries: How many winners were examined, this one among them.
        """
        if self.why or self.held_out is None or held_out.per_sample is None:
            return self.none(tries)
        lead = None
        if (
            search is not None
            and search.per_sample is not None
            and self.search is not None
        ):
            lead = OtherSamples(self.search.reference, search.per_sample)
        return self.held_out.certify(held_out.per_sample, tries, lead)

    def none(self, tries: int) -> Certificate:
        """Return the certificate that says why there is none."""
        tolerance = self.goal.tolerance if self.goal is not None else 0.0
        mode = self.goal.mode if self.goal is not None else ""
        return Certificate(
            False,
            self.confidence,
            None,
            None,
            tolerance,
            mode,
            0,
            tries,
            METHOD,
            self.why,
        )


def certifying(
    criterion: Criterion,
    baseline: Mapping[str, float],
    search: Scores,
    held_out: Scores | None,
) -> Certifying | None:
    """Make ready to certify; None where no confidence is asked for.

    Args:
        criterion: Has the goal.
        baseline: The float model's metrics.
        search: Its scores in the search.
        held_out: Its scores on held-out data; None where there is none.

    Raises:
        ConfigError: If the range of a sample's score must be said.
        EvaluationError: If a sample's score is outside the range that was said.
    """
    confidence = getattr(criterion.config, "confidence", None)
    if confidence is None:
        return None
    goal = criterion.sample_goal(baseline)
    why = _missing(goal, search, held_out)
    if goal is None or why:
        return Certifying(confidence, goal, why)
    assert search.per_sample is not None
    assert held_out is not None
    assert held_out.per_sample is not None
    if score_range(goal, held_out.per_sample) is None:
        raise ConfigError(
            "accuracy.confidence needs the range of a sample's score, for these are not all 0 or "
            "1: say accuracy.score_range = [least, greatest], for example [0, 1]"
        )
    searching = Certifier(goal, search.per_sample)
    holding = Certifier(goal, held_out.per_sample)
    needed = holding.samples_needed()
    there = len(held_out.per_sample)
    if needed > there:
        why = (
            f"{there} held-out samples are too few to certify a tolerance of {goal.tolerance:g} "
            f"with {confidence:g} confidence, even where nothing is lost: it takes about {needed}"
        )
        return Certifying(confidence, goal, why)
    return Certifying(confidence, goal, "", searching, holding)


def _missing(goal: SampleGoal | None, search: Scores, held_out: Scores | None) -> str:
    """Return what a certificate lacks; '' if nothing."""
    if goal is None:
        return (
            "a certificate is of one metric, the mean over samples: say accuracy.metric, or "
            "score one"
        )
    if not goal.tolerance:
        return (
            "a tolerance of 0 cannot be certified from samples: tolerate a loss above 0"
        )
    if search.per_sample is None:
        return (
            "there are no scores of single samples: wrap the score function in "
            "octavo.SampleScore, or return octavo.Evaluation(value, per_sample=...) from it"
        )
    if held_out is None or held_out.per_sample is None:
        return (
            "holdout_fn gives no scores of single samples: make it an octavo.SampleScore, or "
            "return octavo.Evaluation(value, per_sample=...) from it"
        )
    return ""


def coarseness(scores: Scores | None, allowed: float | None) -> str:
    """Say how many tolerances a single sample is, where that is so much that the verdict can be
    chance; else ''.

    Args:
        scores: Scores of single samples; None where they are unknown.
        allowed: Tolerated loss in the score's own unit; None or 0 where there is none.
    """
    if scores is None or scores.per_sample is None or not allowed:
        return ""
    samples = scores.per_sample
    all_or_nothing = bool(np.isin(samples, (0.0, 1.0)).all())
    step = 1.0 if all_or_nothing else float(samples.max() - samples.min())
    tolerances = step / len(samples) / allowed
    if tolerances < COARSE:
        return ""
    return (
        f"{len(samples)} samples are few: one sample is {tolerances:.3g} tolerances, so the true "
        "loss may be many times what is tolerated; score more samples"
    )
