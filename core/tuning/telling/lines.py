"""A run in words: one line for a trial, for a phase, for the time that is left."""

from __future__ import annotations

from octavo.core.report import text
from octavo.core.tuning.progress import RECOVERY, SAVING, TRIALS, Phase
from octavo.core.values.recipe import Recipe
from octavo.core.values.trial import Trial

MANY = 10**6
"""Recipes from which on a space is told by its ops and their choices."""


def line(trial: Trial, metric: str) -> str:
    """Return one trial in one line."""
    who = f"trial {trial.number} on {trial.recipe.backend}"
    if trial.state == "failed":
        lines = trial.error.strip().splitlines()
        return f"{who} failed: {lines[-1] if lines else 'no error text'}"
    if trial.distances and not trial.is_gain:
        return f"{who}: {text.left_out(trial)}"
    told = ", ".join(figures(trial, metric))
    if trial.state == "rejected":
        return f"{who}: {told}, stopped after {trial.evaluated:.0%} of the samples"
    if not trial.number:
        return f"float model: {told}"
    return f"{who}: {text.bits(trial) or 'float'}: {told}, {verdict(trial)}"


def figures(trial: Trial, metric: str) -> list[str]:
    """Return a trial's score and what it costs, beside float's in the same rounds."""
    found = [f"{metric} {text.score(trial, metric)}"]
    told = text.pair if trial.number else text.measured
    found += [f"{name} {told(m)}" for name, m in trial.objectives.items()]
    return found


def verdict(trial: Trial) -> str:
    """Return whether a trial passes; if it does not, which budgets it overran and by how much."""
    if trial.passed:
        return "passes"
    if not trial.over:
        return "does not pass"
    overruns = [f"{name} by {share - 1:.1%}" for name, share in trial.over.items()]
    return f"over budget: {', '.join(overruns)}"


def space_told(recipes: int, ops: str) -> str:
    """Return how large a space is: its recipes, or its ops and their choices where it is huge."""
    if ops and recipes >= MANY:
        return ops
    counted = "one recipe" if recipes == 1 else f"{recipes:,} recipes"
    return f"{counted} in the space"


def step(phase: Phase, trial: tuple[int, Recipe] | None) -> str:
    """Return what a run is at: ``sensitivities 120 of 456 on onnx``, ``trial 5 of at most 18``.

    Args:
        phase: The innermost that goes on.
        trial: Number and recipe of the trial that runs; None between two.
    """
    if phase.name == RECOVERY and trial is not None:
        number, recipe = trial
        what = recipe.recovery[-1].kind if recipe.recovery else phase.name
        return (
            f"recovery {phase.done + 1} of at most {phase.total}: {what}, trial {number} on "
            f"{recipe.backend}"
        )
    if phase.name == TRIALS:
        if trial is None:
            return f"trials {phase.done} of at most {phase.total}"
        number, recipe = trial
        return f"trial {number} of at most {phase.total} on {recipe.backend}"
    said = phase.name
    if phase.total is not None:
        said += f" {phase.done} of {phase.total}"
    elif phase.done:
        said += f" {phase.done}"
    return f"{said} {phase.about}".rstrip()


def time_left(phase: Phase, seconds: float) -> str:
    """Return what is left of a run so many seconds after a phase was told."""
    if phase.name == SAVING:
        return "nothing else is left"
    left = phase.left_after(seconds)
    if left is None:
        return "time left unknown"
    return about(left)


def about(seconds: float) -> str:
    """Return what is left of a run; it is never nothing before the end."""
    return f"about {text.duration(max(1.0, seconds))} left"


__all__ = ["about", "line", "space_told", "step", "time_left"]
