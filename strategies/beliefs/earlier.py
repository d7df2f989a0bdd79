"""What runs with other goals have measured of the same model, data and score."""

from __future__ import annotations

from octavo.core.contract.strategy import Problem
from octavo.core.values.trial import Trial

from .losses import Transforms
from .picks import Picks, picks_of

ENOUGH = 3
"""Trials from which on a belief knows how much a recipe loses, and not only which loses more."""


class Earlier:
    """Trials of earlier runs, each with its margin to this run's goal.

    None of them is a candidate of this run: what is chosen is evaluated again.

    Args:
        problem: Has them.
    """

    def __init__(self, problem: Problem) -> None:
        self._by_transforms: dict[Transforms, dict[Picks, Trial]] = {}
        # Time is of a machine and a moment: what kept such a limit then may not now.
        self._budgets_are_known = "latency" not in problem.budgets
        for trial in problem.earlier:
            recipe = trial.recipe
            is_of_use = trial.state == "complete" and not recipe.recovery
            if is_of_use and len(recipe) and problem.space.contains(recipe):
                under = self._by_transforms.setdefault(recipe.transforms, {})
                under[picks_of(problem.space, recipe)] = trial

    def under(self, transforms: Transforms) -> dict[Picks, Trial]:
        """Return the trials under one alternative of transforms, by picks."""
        return self._by_transforms.get(transforms, {})

    def is_enough(self, transforms: Transforms) -> bool:
        """Return whether they tell how much a recipe loses."""
        return len(self.under(transforms)) >= ENOUGH

    def has_missed(self, picks: Picks, transforms: Transforms) -> bool:
        """Return whether a recipe is known to miss this run's goal."""
        trial = self.under(transforms).get(picks)
        return self._budgets_are_known and trial is not None and trial.margin < 0

    def nearest(self) -> Transforms:
        """Return the transforms of the trial that lies nearest to the goal."""
        trials = [t for under in self._by_transforms.values() for t in under.values()]
        return min(trials, key=lambda t: abs(t.margin)).recipe.transforms
