"""How a run goes, in the log: phases and trials at INFO, what begins at DEBUG."""

from __future__ import annotations

from typing import Any

from octavo.core.report import text
from octavo.core.system.log import get_logger
from octavo.core.tuning.progress import Phase, Progress
from octavo.core.values.recipe import Recipe
from octavo.core.values.trial import Trial

logger = get_logger("tuning")


class Logged(Progress):
    """Writes what listeners are told to ``octavo.tuning``.

    Records of trials carry their figures as attributes, for handlers that write JSON: ``trial``,
    ``backend``, ``state``, ``passed``, ``metrics``, ``objectives``. Those of phases have ``phase``,
    ``done`` and ``total``.
    """

    def __init__(self) -> None:
        self._begun = 0

    def phase(self, phase: Phase) -> None:
        """Log a phase as it begins, and each step of it in detail."""
        if not phase.name:
            return
        is_new = phase.number > self._begun
        self._begun = max(self._begun, phase.number)
        known = {"phase": phase.name, "done": phase.done, "total": phase.total}
        about = f" ({phase.about})" if phase.about else ""
        if is_new:
            logger.info("%s%s", phase.name, about, extra=known)
        else:
            logger.debug(
                "%s%s: %d of %s",
                phase.name,
                about,
                phase.done,
                phase.total if phase.total is not None else "?",
                extra=known,
            )

    def started(
        self, baseline: Trial, goal: str, max_trials: int, space_size: int
    ) -> None:
        """Log where the search starts from."""
        logger.info(
            "float model: %s; goal: %s; at most %d evaluations",
            figures(baseline),
            goal,
            max_trials,
            extra=attributes(baseline),
        )

    def trying(self, number: int, recipe: Recipe) -> None:
        """Log which recipe is tried."""
        logger.debug(
            "trial %d on %s begins: recipe %s", number, recipe.backend, recipe.digest
        )

    def finished(
        self, trial: Trial, best: Trial | None, seconds_left: float | None
    ) -> None:
        """Log a trial."""
        so_far = f"best so far: trial {best.number}" if best else "none passes so far"
        logger.info(
            "trial %d on %s: %s; %s",
            trial.number,
            trial.recipe.backend,
            outcome(trial),
            so_far,
            extra=attributes(trial),
        )

    def ended(self, reason: str) -> None:
        """Log why the search ended."""
        logger.info("the search ended: %s", reason)


def outcome(trial: Trial) -> str:
    """Return what became of a trial, in one line."""
    if trial.state == "failed":
        lines = trial.error.strip().splitlines()
        return f"failed: {lines[-1] if lines else 'no error text'}"
    if trial.distances and not trial.is_gain:
        return text.left_out(trial)
    if trial.state == "rejected":
        return f"{figures(trial)}, stopped after {trial.evaluated:.0%} of the samples"
    return f"{figures(trial)}, {'passes' if trial.passed else 'does not pass'}"


def figures(trial: Trial) -> str:
    """Return a trial's scores and what it costs."""
    scores = [f"{name} {value:.6g}" for name, value in trial.metrics.items()]
    costs = []
    for name, measured in trial.objectives.items():
        is_share_known = measured.ratio is not None and trial.number > 0
        share = f" ({measured.ratio:.3g} of float)" if is_share_known else ""
        costs.append(f"{name} {measured.value:.4g} {measured.unit}{share}")
    return ", ".join((*scores, *costs))


def attributes(trial: Trial) -> dict[str, Any]:
    """Return plain values that a record carries beside its text."""
    return {
        "trial": trial.number,
        "backend": trial.recipe.backend,
        "state": trial.state,
        "passed": trial.passed,
        "metrics": dict(trial.metrics),
        "objectives": {name: m.value for name, m in trial.objectives.items()},
    }


__all__ = ["Logged"]
