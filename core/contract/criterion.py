"""What a criterion is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from .parts import PartConfig


@dataclass(frozen=True, slots=True)
class SampleGoal:
    """A goal for the mean of one score over samples.

    Attributes:
        tolerance: Tolerated loss.
        mode: ``relative``: a share of the float score. ``absolute``: in its own unit.
        higher_is_better: Direction.
        confidence: How sure it must be.
        score_range: The least and the greatest score of a sample; None where nobody said it.
    """

    tolerance: float
    mode: Literal["relative", "absolute"]
    higher_is_better: bool
    confidence: float
    score_range: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judgement.

    Attributes:
        passed: Good enough.
        margin: Signed distance to the goal, higher is better, >= 0 exactly when passed.
        reason: One line: the figures that decided.
    """

    passed: bool
    margin: float
    reason: str


class Criterion(ABC):
    """Judges metrics against the float model's."""

    def __init__(self, config: PartConfig) -> None:
        self.config = config

    @abstractmethod
    def check_baseline(self, baseline: Mapping[str, float]) -> None:
        """Raise ConfigError if these baseline scores make the criterion meaningless (relative to 0,
        a missing metric)."""

    @abstractmethod
    def judge(self, metrics: Mapping[str, float], baseline: Mapping[str, float]) -> Verdict:
        """Judge a candidate."""

    @abstractmethod
    def describe(self, baseline: Mapping[str, float]) -> str:
        """Say the goal in one line, with figures."""

    def noise(self, runs: tuple[Mapping[str, float], ...]) -> str:
        """Return a warning if repeated float scores differ by more than the criterion tolerates;
        else ''."""
        return ""

    def sample_goal(self, baseline: Mapping[str, float]) -> SampleGoal | None:
        """Return the goal of a mean over samples where that is what the criterion asks for, so that
        it may be certified; else None."""
        return None

    def allowed(self, baseline: Mapping[str, float]) -> tuple[float, bool] | None:
        """Return (mean loss a sample that passes at most, whether higher scores are better) where
        the goal is that of one mean score, so that an evaluation may be stopped early; None where
        it is not."""
        return None
