"""What strategies share that begin with everything quantized and take ops back to float."""

from __future__ import annotations

from collections.abc import Collection

from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import FLOAT, OpScheme
from octavo.core.values.space import Unit
from octavo.core.values.trial import Trial
from octavo.strategies.beliefs.losses import Transforms

from .sequential import Asking, Sequential, passed

Choice = dict[str, OpScheme]


class Fallback(Sequential):
    """A start with every unit quantized, and recipes with some of them in float."""

    def start(self) -> Asking[Trial]:
        """Try every unit's first choice under each transform until one passes.

        Returns:
            The best trial.
        """
        space = self.space
        trials = yield from self.run(
            (space.recipe(space.first(), t) for t in space.transforms), until=passed
        )
        return min(trials, key=self.rank)

    def settled(self, start: Trial) -> bool:
        """Return whether taking ops back to float can bring nothing, and say why in the note.

        The start passes, or it misses a budget and no accuracy.
        """
        if start.passed:
            self.note = "everything quantized reaches the goal"
        elif start.margin >= 0 and start.over:
            self.note = (
                "everything quantized is accurate enough and overruns the budget, "
                "which taking ops back only overruns further"
            )
        return bool(self.note)

    def choice(self, trial: Trial) -> Choice:
        """Return what each tunable unit took."""
        return {u.name: trial.recipe[u.ops[0]] for u in self.units}

    def quantized(self, choice: Choice) -> list[Unit]:
        """Return the units that are not in float, in execution order."""
        return [u for u in self.units if not choice[u.name].is_float]

    def without(
        self, base: Choice, names: Collection[str], transforms: Transforms
    ) -> Recipe:
        """Return ``base`` with the named units in float."""
        choice = {
            name: FLOAT if name in names else scheme for name, scheme in base.items()
        }
        return self.space.recipe(choice, transforms)

    def cumulative(
        self, base: Choice, order: list[Unit], transforms: Transforms
    ) -> Asking[Trial | None]:
        """Put ever more units in float, in this order, until a trial passes; return it, or None."""
        names = [u.name for u in order]
        prefixes = (
            self.without(base, names[:k], transforms) for k in range(1, len(names))
        )
        trials = yield from self.run(prefixes, until=passed)
        return next((t for t in trials if t.passed), None)

    def conclude(self, found: Trial | None) -> None:
        """Say how it ended."""
        if found is None:
            self.note = (
                "no recipe reaches the goal, not even with all ops but one in float"
            )
            return
        units = self.units
        left = sum(found.recipe[u.ops[0]].is_float for u in units)
        self.note = f"the goal is reached with {left} of {len(units)} units in float"
