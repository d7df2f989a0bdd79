"""Settings of the tolerance criterion."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from octavo.core.contract.parts import PartConfig
from octavo.core.values.scheme import Frozen

from .direction import ask_for_direction, known_as_higher_is_better


class MetricGoal(Frozen):
    """The goal of one metric; what is left out is taken from the criterion.

    Attributes:
        tolerance: Tolerated loss.
        mode: Its unit.
        higher_is_better: Direction.
        weight: Of its loss in a weighted mean.
        floor: The most that this metric alone may lose where the weighted mean decides, in the unit
            of its tolerance. None: its tolerance times the number of metrics, what it may lose
            where all others lose nothing.
    """

    tolerance: float | None = Field(default=None, ge=0)
    mode: Literal["relative", "absolute"] | None = None
    higher_is_better: bool | None = None
    weight: float = Field(default=1.0, gt=0)
    floor: float | None = Field(default=None, ge=0)


class ToleranceConfig(PartConfig):
    """How much worse than the float model a candidate may be.

    Attributes:
        metric: The metric that counts, where the score function returns one number or several.
            None: all of them.
        tolerance: Tolerated loss: a share of the float score (``relative``) or a difference
            (``absolute``).
        mode: ``relative`` or ``absolute``.
        higher_is_better: Direction. It must be said, unless the metric's name is known to be better
            when higher (``accuracy``, ``val_f1``, ...) or it has none.
        metrics: Goals per metric, where there are several.
        combine: ``all``: every metric must pass. ``weighted``: the weighted mean of the losses,
            each as a share of its own tolerance, must pass, and no metric may lose more than its
            floor.
        noise_runs: How often the float model is scored; from 2 on, a score that varies more than
            the tolerance is reported. A :class:`~octavo.SampleScore` whose first samples come out
            the same a second time is not repeated over all.
        guard: Whether a model that is broken on purpose is scored once, where that is cheap; a
            score that calls it better is refused.
        confidence: How sure it must be that the loss on new data like the held-out samples is
            within the tolerance; None: what was measured decides. It needs scores of single
            samples.
        score_range: The least and the greatest score of a sample, where these are not all 0 or 1; a
            certificate needs it.
    """

    kind: Literal["tolerance"] = "tolerance"
    metric: str | None = None
    tolerance: float = Field(default=0.01, ge=0)
    mode: Literal["relative", "absolute"] = "relative"
    higher_is_better: bool | None = None
    metrics: dict[str, MetricGoal] = Field(default_factory=dict)
    combine: Literal["all", "weighted"] = "all"
    noise_runs: int = Field(default=2, ge=1, le=1000)
    guard: bool = True
    confidence: float | None = Field(default=None, gt=0, lt=1)
    score_range: tuple[float, float] | None = None

    @model_validator(mode="after")
    def _range_is_one(self) -> ToleranceConfig:
        if (
            self.score_range is not None
            and not self.score_range[0] < self.score_range[1]
        ):
            raise ValueError(
                f"score_range = {self.score_range} is empty: give the least score first"
            )
        return self

    @model_validator(mode="after")
    def _one_list_of_metrics(self) -> ToleranceConfig:
        if self.metric is not None and self.metrics:
            listed = ", ".join(map(repr, self.metrics))
            raise ValueError(
                f"metric {self.metric!r} stands beside metrics ({listed}), and only one can say "
                "what "
                f"counts: add {self.metric!r} to metrics, or leave one of the two out"
            )
        return self

    @model_validator(mode="after")
    def _direction_is_said(self) -> ToleranceConfig:
        named = [self.metric] if self.metric is not None else list(self.metrics)
        for name in named:
            if self.goal_of(
                name
            ).higher_is_better is None and not known_as_higher_is_better(name):
                raise ValueError(ask_for_direction(name))
        return self

    @model_validator(mode="after")
    def _shares_are_below_one(self) -> ToleranceConfig:
        # What no metric uses may be anything: each may say a mode of its own.
        goals = {name: self.goal_of(name) for name in self.metrics} or {
            "": self.goal_of("")
        }
        for name, goal in goals.items():
            where = f"metrics.{name}." if name else ""
            for setting in ("tolerance", "floor"):
                value = getattr(goal, setting)
                if goal.mode == "relative" and value is not None and value >= 1:
                    raise ValueError(
                        f"{where}{setting} = {value:g} tolerates the loss of the whole score, for "
                        "it is a "
                        "share of it: 1 % is 0.01 (mode = 'absolute' counts in the score's own "
                        "unit)"
                    )
            if goal.floor is not None and goal.floor < float(goal.tolerance or 0.0):
                raise ValueError(
                    f"{where}floor = {goal.floor:g} is below its tolerance of {goal.tolerance:g}; "
                    "lower the tolerance instead"
                )
        return self

    @model_validator(mode="after")
    def _weights_and_floors_are_used(self) -> ToleranceConfig:
        for name, goal in self.metrics.items():
            for setting in ("weight", "floor"):
                if self.combine == "all" and setting in goal.model_fields_set:
                    raise ValueError(
                        f"metrics.{name}.{setting} counts only where the weighted mean decides: "
                        "say combine = 'weighted', or leave it out"
                    )
        return self

    def goal_of(self, name: str) -> MetricGoal:
        """Return the goal of a metric, what it leaves out filled in; the direction is None where
        nobody said it."""
        own = self.metrics.get(name, MetricGoal())
        direction = own.higher_is_better
        return MetricGoal(
            tolerance=self.tolerance if own.tolerance is None else own.tolerance,
            mode=own.mode or self.mode,
            higher_is_better=self.higher_is_better if direction is None else direction,
            weight=own.weight,
            floor=own.floor,
        )
