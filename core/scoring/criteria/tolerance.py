"""Loss against the float model, relative or absolute, of one metric or several."""

from __future__ import annotations

from collections.abc import Mapping

from octavo.core.contract.criterion import Criterion, SampleGoal, Verdict
from octavo.core.errors import ConfigError, nearest

from .config import MetricGoal, ToleranceConfig
from .direction import ask_for_direction, known_as_higher_is_better


class Tolerance(Criterion):
    """Passes if each metric's loss (or their weighted mean) is within its tolerance."""

    config: ToleranceConfig

    def _goals(self, baseline: Mapping[str, float]) -> dict[str, MetricGoal]:
        c = self.config
        names = list(c.metrics) or ([c.metric] if c.metric else list(baseline))
        goals = {}
        for name in names:
            if name not in baseline:
                raise ConfigError(
                    f"the score function returns no metric {name!r}{nearest(name, baseline)}"
                )
            goal = c.goal_of(name)
            if goal.higher_is_better is None:
                if not known_as_higher_is_better(name):
                    raise ConfigError(ask_for_direction(name))
                goal = goal.model_copy(update={"higher_is_better": True})
            if goal.floor is None:
                goal = goal.model_copy(update={"floor": float(goal.tolerance or 0.0) * len(names)})
            goals[name] = goal
        return goals

    def check_baseline(self, baseline: Mapping[str, float]) -> None:
        """Refuse a relative goal at a float score of 0, and one that any score from 0 on meets."""
        for name, goal in self._goals(baseline).items():
            if goal.mode == "relative" and baseline[name] == 0:
                raise ConfigError(
                    f"the float model's {name!r} is 0, and a relative tolerance of 0 is 0: set "
                    "accuracy.mode to 'absolute'"
                )
            allowed = _allowed(goal, baseline[name])
            if goal.higher_is_better and 0 < baseline[name] <= allowed:
                raise ConfigError(
                    f"the float model's {name!r} is {baseline[name]:.6g}, and a loss of "
                    f"{allowed:g} is tolerated: "
                    "any model meets that. Lower accuracy.tolerance (1 % is 0.01)"
                )

    def _margin(self, rows: list[tuple[str, float, float, MetricGoal]]) -> float:
        """Return the distance to the goal of all metrics together."""
        shares = [share for _, _, share, _ in rows]
        if self.config.combine != "weighted":
            return min(shares)
        weights = [goal.weight for *_, goal in rows]
        mean = sum(s * w for s, w in zip(shares, weights, strict=True)) / sum(weights)
        # What others gain has no limit, so the mean alone would let one metric collapse.
        return min(mean, *(_above_floor(loss, goal) for _, loss, _, goal in rows))

    def _shares(
        self, metrics: Mapping[str, float], baseline: Mapping[str, float]
    ) -> list[tuple[str, float, float, MetricGoal]]:
        """(name, loss, share of the tolerance that is left, goal); with tolerance 0 the share is
        -loss."""
        rows = []
        for name, goal in self._goals(baseline).items():
            loss = (
                baseline[name] - metrics[name]
                if goal.higher_is_better
                else metrics[name] - baseline[name]
            )
            if goal.mode == "relative":
                loss /= abs(baseline[name])
            # Scores are counted, so 0.99 - 0.98 must be a loss of 0.01: a few ulps of the scores
            # are forgiven.
            loss = 0.0 if abs(loss) < 1e-12 else loss
            tolerance = float(goal.tolerance or 0.0)
            share = (tolerance - loss) / tolerance if tolerance else -loss
            rows.append((name, loss, 0.0 if -1e-9 < share < 0 else share, goal))
        return rows

    def judge(self, metrics: Mapping[str, float], baseline: Mapping[str, float]) -> Verdict:
        """Judge; a metric that is missing fails."""
        missing = [n for n in self._goals(baseline) if n not in metrics]
        if missing:
            return Verdict(
                False,
                float("-inf"),
                f"metric {missing[0]!r} is missing{nearest(missing[0], metrics)}",
            )
        rows = self._shares(metrics, baseline)
        margin = self._margin(rows)
        weighted = self.config.combine == "weighted" and len(rows) > 1
        parts = [
            f"{n} {metrics[n]:.6g} against {baseline[n]:.6g} (loss {loss:.3g}, tolerated "
            f"{goal.tolerance:g} {goal.mode}"
            + (f", never more than {goal.floor:g})" if weighted else ")")
            for n, loss, _, goal in rows
        ]
        return Verdict(margin >= 0, margin, "; ".join(parts))

    def describe(self, baseline: Mapping[str, float]) -> str:
        """Say the goal."""
        lines = []
        for name, goal in self._goals(baseline).items():
            allowed = _allowed(goal, baseline[name])
            bound = baseline[name] - allowed if goal.higher_is_better else baseline[name] + allowed
            lines.append(f"{name} {'>=' if goal.higher_is_better else '<='} {bound:.6g}")
        return (
            "weighted mean of " if self.config.combine == "weighted" and len(lines) > 1 else ""
        ) + " and ".join(lines)

    def noise(self, runs: tuple[Mapping[str, float], ...]) -> str:
        """Compare the spread of repeated float scores with the tolerance."""
        lines = []
        for name, goal in self._goals(runs[0]).items():
            values = [r[name] for r in runs]
            spread = max(values) - min(values)
            allowed = _allowed(goal, values[0])
            if spread > allowed:
                lines.append(
                    f"{name} of the float model varied by {spread:.3g} between {len(values)} "
                    f"runs, and only {allowed:.3g} is tolerated"
                )
        return "; ".join(lines) + (
            ": seed the score function or score more samples" if lines else ""
        )

    def sample_goal(self, baseline: Mapping[str, float]) -> SampleGoal | None:
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

    def allowed(self, baseline: Mapping[str, float]) -> tuple[float, bool] | None:
        """Return the allowed loss of a lone metric, in its own unit."""
        goals = self._goals(baseline)
        if len(goals) != 1:
            return None
        ((name, goal),) = goals.items()
        return _allowed(goal, baseline[name]), bool(goal.higher_is_better)


def _allowed(goal: MetricGoal, baseline: float) -> float:
    """Return the tolerated loss in the score's own unit."""
    return float(goal.tolerance or 0.0) * (abs(baseline) if goal.mode == "relative" else 1.0)


def _above_floor(loss: float, goal: MetricGoal) -> float:
    """Return how much is left to the floor as a share of it; with a floor of 0, the gain."""
    floor = float(goal.floor or 0.0)
    left = (floor - loss) / floor if floor else -loss
    return 0.0 if -1e-9 < left < 0 else left
