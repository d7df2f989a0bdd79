"""Loss against the float model, relative or absolute, of one metric or several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from octavo.core.contract.criterion import Criterion, SampleGoal, Verdict
from octavo.core.errors import ConfigError, nearest

from .config import MetricGoal, ToleranceConfig
from .direction import ask_for_direction, known_as_higher_is_better

Metrics = Mapping[str, float]
"""Metric -> score."""


class Tolerance(Criterion):
    """Passes if each metric's loss (or their weighted mean) is within its tolerance."""

    config: ToleranceConfig

    def _goals(self, baseline: Metrics) -> dict[str, MetricGoal]:
        """Return the goal of each metric that counts, complete."""
        names = self._names(baseline)
        goals = {}
        for name in names:
            if name not in baseline:
                hint = nearest(name, baseline)
                raise ConfigError(
                    f"the score function returns no metric {name!r}{hint}"
                )
            goals[name] = self._complete(name, count=len(names))
        return goals

    def _names(self, baseline: Metrics) -> list[str]:
        if self.config.metrics:
            return list(self.config.metrics)
        if self.config.metric:
            return [self.config.metric]
        return list(baseline)

    def _complete(self, name: str, count: int) -> MetricGoal:
        goal = self.config.goal_of(name)
        if goal.higher_is_better is None:
            if not known_as_higher_is_better(name):
                raise ConfigError(ask_for_direction(name))
            goal = goal.model_copy(update={"higher_is_better": True})
        if goal.floor is None:
            # What the metric may lose where all others lose nothing.
            floor = float(goal.tolerance or 0.0) * count
            goal = goal.model_copy(update={"floor": floor})
        return goal

    def check_baseline(self, baseline: Metrics) -> None:
        """Refuse a relative goal at a float score of 0, and one that any score from 0 on meets."""
        for name, goal in self._goals(baseline).items():
            score = baseline[name]
            if goal.mode == "relative" and score == 0:
                raise ConfigError(
                    f"the float model's {name!r} is 0, and a relative tolerance of 0 is 0: set "
                    "accuracy.mode to 'absolute'"
                )
            allowed = _allowed(goal, score)
            if goal.higher_is_better and 0 < score <= allowed:
                raise ConfigError(
                    f"the float model's {name!r} is {score:.6g}, and a loss of "
                    f"{allowed:g} is tolerated: "
                    "any model meets that. Lower accuracy.tolerance (1 % is 0.01)"
                )

    def _margin(self, rows: Sequence[_Row]) -> float:
        """Return the distance to the goal of all metrics together."""
        shares = [row.share for row in rows]
        if self.config.combine != "weighted":
            return min(shares)
        weights = [row.goal.weight for row in rows]
        total = sum(row.share * row.goal.weight for row in rows)
        mean = total / sum(weights)
        # What others gain has no limit, so the mean alone would let one metric collapse.
        above_floors = [_above_floor(row.loss, row.goal) for row in rows]
        return min(mean, *above_floors)

    def _rows(self, metrics: Metrics, baseline: Metrics) -> list[_Row]:
        rows = []
        for name, goal in self._goals(baseline).items():
            loss = _loss(metrics[name], baseline[name], goal)
            limit = float(goal.tolerance or 0.0)
            share = _share_left(loss, limit)
            rows.append(_Row(name, loss, share, goal))
        return rows

    def judge(self, metrics: Metrics, baseline: Metrics) -> Verdict:
        """Judge; a metric that is missing fails."""
        missing = [name for name in self._goals(baseline) if name not in metrics]
        if missing:
            hint = nearest(missing[0], metrics)
            return Verdict(
                False, float("-inf"), f"metric {missing[0]!r} is missing{hint}"
            )
        rows = self._rows(metrics, baseline)
        margin = self._margin(rows)
        is_weighted = self.config.combine == "weighted" and len(rows) > 1
        parts = []
        for row in rows:
            goal = row.goal
            score = metrics[row.name]
            base = baseline[row.name]
            floor = f", never more than {goal.floor:g}" if is_weighted else ""
            parts.append(
                f"{row.name} {score:.6g} against {base:.6g} "
                f"(loss {row.loss:.3g}, tolerated {goal.tolerance:g} {goal.mode}{floor})"
            )
        return Verdict(margin >= 0, margin, "; ".join(parts))

    def describe(self, baseline: Metrics) -> str:
        """Say the goal."""
        lines = []
        for name, goal in self._goals(baseline).items():
            score = baseline[name]
            allowed = _allowed(goal, score)
            if goal.higher_is_better:
                lines.append(f"{name} >= {score - allowed:.6g}")
            else:
                lines.append(f"{name} <= {score + allowed:.6g}")
        is_weighted = self.config.combine == "weighted" and len(lines) > 1
        what = "weighted mean of " if is_weighted else ""
        return what + " and ".join(lines)

    def noise(self, runs: tuple[Metrics, ...]) -> str:
        """Compare the spread of repeated float scores with the tolerance."""
        lines = []
        for name, goal in self._goals(runs[0]).items():
            values = [run[name] for run in runs]
            spread = max(values) - min(values)
            allowed = _allowed(goal, values[0])
            if spread > allowed:
                lines.append(
                    f"{name} of the float model varied by {spread:.3g} between {len(values)} runs, "
                    f"and only {allowed:.3g} is tolerated"
                )
        if not lines:
            return ""
        return "; ".join(lines) + ": seed the score function or score more samples"

    def sample_goal(self, baseline: Metrics) -> SampleGoal | None:
        """Return the goal of a lone metric, with the confidence that is asked for; None where there
        are several, or none is."""
        goals = list(self._goals(baseline).values())
        if self.config.confidence is None or len(goals) != 1:
            return None
        (goal,) = goals
        return SampleGoal(
            float(goal.tolerance or 0.0),
            goal.mode or "relative",
            bool(goal.higher_is_better),
            self.config.confidence,
            self.config.score_range,
        )

    def allowed(self, baseline: Metrics) -> tuple[float, bool] | None:
        """Return the allowed loss of a lone metric, in its own unit."""
        goals = self._goals(baseline)
        if len(goals) != 1:
            return None
        ((name, goal),) = goals.items()
        return _allowed(goal, baseline[name]), bool(goal.higher_is_better)


@dataclass(frozen=True, slots=True)
class _Row:
    """What one metric lost.

    Attributes:
        name: The metric.
        loss: In the unit of its tolerance.
        share: Of the tolerance that is left; -loss where nothing is tolerated.
        goal: Its goal.
    """

    name: str
    loss: float
    share: float
    goal: MetricGoal


def _allowed(goal: MetricGoal, baseline: float) -> float:
    """Return the tolerated loss in the score's own unit."""
    unit = abs(baseline) if goal.mode == "relative" else 1.0
    return float(goal.tolerance or 0.0) * unit


def _loss(score: float, baseline: float, goal: MetricGoal) -> float:
    """Return what was lost, in the unit of the tolerance; a gain is negative."""
    loss = baseline - score if goal.higher_is_better else score - baseline
    if goal.mode == "relative":
        loss /= abs(baseline)
    # Scores are counted, so 0.99 - 0.98 must be a loss of 0.01: a few ulps of the scores are
    # forgiven.
    return 0.0 if abs(loss) < 1e-12 else loss


def _share_left(loss: float, limit: float) -> float:
    """Return how much is left to a limit as a share of it; with a limit of 0, the gain."""
    left = -loss
    if limit:
        left = (limit - loss) / limit
    # A loss that equals the limit up to rounding keeps it.
    return 0.0 if -1e-9 < left < 0 else left


def _above_floor(loss: float, goal: MetricGoal) -> float:
    return _share_left(loss, float(goal.floor or 0.0))
