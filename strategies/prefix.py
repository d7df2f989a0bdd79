"""Mixed-precision prefix search: steps to safer schemes in the order of what they buy.

A binary search finds how many to take.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from octavo.core.contract.strategy import Foresight
from octavo.core.values.recipe import Recipe
from octavo.core.values.space import Unit
from octavo.strategies.beliefs.losses import Transforms, listed_losses, shortlist
from octavo.strategies.beliefs.picks import weight_bytes

from . import PrefixConfig
from .fallback import Choice, Fallback
from .sequential import Search, passed

Step = tuple[str, int]
"""A unit's name and the choice that it takes next."""


class Prefix(Fallback):
    """About 1 + log2(steps) evaluations, on the assumption that more steps never hurt."""

    config: PrefixConfig

    def search(self) -> Search:
        """Start from the smallest schemes and search for the shortest passing prefix of steps."""
        space = self.space
        smallest = self._smallest()
        self.ahead = Foresight(probes=True)
        recipes = (space.recipe(smallest, t) for t in space.transforms)
        trials = yield from self.run(recipes, until=passed)
        best = min(trials, key=self.rank)
        if self.settled(best):
            return
        transforms = best.recipe.transforms
        most = sum(len(unit.choices) - 1 for unit in self.units)
        self.ahead = Foresight(most.bit_length())
        steps = self._steps(transforms)
        misses = 0
        reaches = len(steps)  # all steps are float, which reaches the goal
        while reaches - misses > 1:
            self.ahead = Foresight((reaches - misses - 1).bit_length())
            middle = (misses + reaches) // 2
            trial = yield from self.one(self._after(steps[:middle], transforms))
            if trial.passed:
                reaches = middle
            else:
                misses = middle
        if reaches < len(steps):
            share = f"{reaches} of {len(steps)} steps"
            self.note = f"{share} to safer schemes reach the goal"
        else:
            self.note = "no prefix but all-float reaches the goal"

    def _smallest(self) -> Choice:
        return {u.name: min(u.choices, key=u.weight_bytes) for u in self.units}

    def _steps(self, transforms: Transforms) -> list[Step]:
        """Return the steps, the most loss removed for a byte first.

        A unit's own steps stay in order.
        """
        units = self.units
        sizes = weight_bytes(self.space)
        kept = shortlist(self.problem, sizes, transforms)
        # The smallest choice is where a unit starts, listed or not.
        listed = []
        for row, size in zip(kept, sizes, strict=True):
            smallest = int(np.argmin(size))
            listed.append(sorted({*row, smallest}))
        kind = self.config.sensitivity
        losses = listed_losses(self.problem, kind, listed, transforms)
        rated: list[tuple[float, Step]] = []
        for unit, row, found in zip(units, listed, losses, strict=True):
            lost = dict(zip(row, map(float, found), strict=True))
            rated += _hull(unit, lost)
        rated.sort(key=lambda r: -r[0])
        return [step for _, step in rated]

    def _after(self, steps: Sequence[Step], transforms: Transforms) -> Recipe:
        """Return the recipe after some steps from the smallest one."""
        space = self.space
        taken = {name: space.by_name[name].choices[i] for name, i in steps}
        return space.recipe(self._smallest() | taken, transforms)


def _hull(unit: Unit, losses: Mapping[int, float]) -> list[tuple[float, Step]]:
    """Return a unit's steps along the lower convex hull of its choices, each with its rate.

    The rate is the loss that is removed for a byte; it falls from step to step.

    Args:
        unit: The unit.
        losses: Choice -> loss, of the choices that are looked at; float is among them.
    """
    sizes = {i: unit.weight_bytes(unit.choices[i]) for i in losses}
    at = min(losses, key=lambda i: (sizes[i], i))
    rated = []
    while not unit.choices[at].is_float:
        gains = []
        for index, loss in losses.items():
            is_safer = loss < losses[at] or unit.choices[index].is_float
            if index != at and is_safer:
                removed = losses[at] - loss
                more_bytes = max(sizes[index] - sizes[at], 1e-9)
                gains.append((removed / more_bytes, index))
        rate, at = max(gains)
        rated.append((rate, (unit.name, at)))
    return rated
