"""Settings of the tolerance criterion."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ..parts import PartConfig
from ..scheme import Frozen

LOSSES = ("loss", "perplexity", "ppl", "mse", "mae", "rmse", "error", "wer", "cer", "nll", "crossentropy", "cross_entropy", "log_loss")


class MetricGoal(Frozen):
    """The goal of one metric; what is left out is taken from the criterion."""

    tolerance: float | None = Field(default=None, ge=0)
    mode: Literal["relative", "absolute"] | None = None
    higher_is_better: bool | None = None
    weight: float = Field(default=1.0, gt=0)


class ToleranceConfig(PartConfig):
    """How much worse than the float model a candidate may be.

    Attributes:
        metric: The metric that counts, where the score function returns one number or several. None: all of them.
        tolerance: Tolerated loss: a share of the float score (``relative``) or a difference (``absolute``).
        mode: ``relative`` or ``absolute``.
        higher_is_better: Direction. None means True, but must be said for metrics whose name is that of a loss.
        metrics: Goals per metric, where there are several.
        combine: ``all``: every metric must pass. ``weighted``: the weighted mean of the losses, each as a share of its
            own tolerance, must pass.
        noise_runs: How often the float model is scored; from 2 on, a score that varies more than the tolerance is reported. A
            :class:`~octavo.SampleScore` whose first samples come out the same a second time is not repeated over all.
    """

    kind: Literal["tolerance"] = "tolerance"
    metric: str | None = None
    tolerance: float = Field(default=0.01, ge=0)
    mode: Literal["relative", "absolute"] = "relative"
    higher_is_better: bool | None = None
    metrics: dict[str, MetricGoal] = Field(default_factory=dict)
    combine: Literal["all", "weighted"] = "all"
    noise_runs: int = Field(default=2, ge=1, le=1000)

    @model_validator(mode="after")
    def _direction_is_said(self) -> ToleranceConfig:
        for name in {self.metric, *self.metrics} - {None}:
            goal = self.metrics.get(str(name))
            said = self.higher_is_better if goal is None or goal.higher_is_better is None else goal.higher_is_better
            if said is None and str(name).lower() in LOSSES:
                raise ValueError(f"metric {name!r} reads like a loss: say higher_is_better = false (or true) so that nothing is guessed")
        return self
