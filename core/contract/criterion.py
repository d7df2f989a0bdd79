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
        """Refuse scores of the float model that make the criterion meaningless.

        Raises:
            ConfigError: If they do: a tolerance relative to 0, a missing metric.
        """

    @abstractmethod
    def judge(
        self, metrics: Mapping[str, float], baseline: Mapping[str, float]
    ) -> Verdict:
        """Judge a candidate.

        Args:
            metrics: Its scores by name.
            baseline: The float model's.
        """

    @abstractmethod
    def describe(self, baseline: Mapping[str, float]) -> str:
        """Say the goal in one line, with figures."""

    def noise(self, runs: tuple[Mapping[str, float], ...]) -> str:
        """Return a warning if repeated float scores differ by more than is tolerated; else ''."""
        return ""

    def sample_goal(self, baseline: Mapping[str, float]) -> SampleGoal | None:
        """Return the goal of a mean over samples, so that it may be certified.

        Returns:
            None where that is not what the criterion asks for.
        """
        return None

    def allowed(self, baseline: Mapping[str, float]) -> tuple[float, bool] | None:
        """Return what one mean score may lose, so that an evaluation may be stopped early.

        Returns:
            (the largest mean loss of a sample that passes, whether higher scores are better); None
            where the goal is not that of one mean score.
        """
        return None
