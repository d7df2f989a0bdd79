"""Mixed-precision prefix search: steps to safer schemes in the order of what they buy, and a binary search on how many to take."""

from __future__ import annotations

import numpy as np

from octavo.core.values.recipe import Recipe
from octavo.core.values.space import Unit

from . import PrefixConfig
from .fallback import Fallback
from .losses import Transforms, pair_losses, shortlist
from .sequential import Search

Step = tuple[str, int]


class Prefix(Fallback):
    """About 1 + log2(steps) evaluations, on the assumption that more steps never hurt."""

    config: PrefixConfig

    def search(self) -> Search:
        """Start from the smallest schemes and search for the shortest passing prefix of steps."""
        space = self.problem.space
        smallest = {u.name: min(u.choices, key=u.weight_bytes) for u in space.tunable}
        trials = yield from self.run(
            (space.recipe(smallest, t) for t in space.transforms), until=lambda t: t.passed
        )
        best = min(trials, key=self.rank)
        if self.settled(best):
            return
        transforms = best.recipe.transforms
        steps = self._steps(transforms)
        low, high = 0, len(steps)  # low misses the goal; high is float
        found = None
        while high - low > 1:
            middle = (low + high) // 2
            trial = yield from self.one(self._after(steps[:middle], transforms))
            if trial.passed:
                high, found = middle, trial
            else:
                low = middle
        self.note = (
            f"{high} of {len(steps)} steps to safer schemes reach the goal"
            if found
            else "no prefix but all-float reaches the goal"
        )

    def _steps(self, transforms: Transforms) -> list[Step]:
        """Return (unit, choice) steps, the most loss removed for a byte first; a unit's own steps stay in order."""
        units = self.problem.space.tunable
        sizes = [np.array([u.weight_bytes(s) for s in u.choices]) for u in units]
        # The smallest choice is where a unit starts, listed or not.
        listed = [
            sorted({*kept, int(np.argmin(size))})
            for kept, size in zip(shortlist(self.problem, sizes, transforms), sizes, strict=True)
        ]
        pairs = [(u, u.choices[i]) for u, kept in zip(units, listed, strict=True) for i in kept]
        losses = iter(pair_losses(self.problem, self.config.sensitivity, pairs, transforms))
        rated: list[tuple[float, Step]] = []
        for unit, kept in zip(units, listed, strict=True):
            rated += self._hull(unit, {i: next(losses) for i in kept})
        return [step for _, step in sorted(rated, key=lambda r: -r[0])]

    @staticmethod
    def _hull(unit: Unit, losses: dict[int, float]) -> list[tuple[float, Step]]:
        """Return (loss removed for a byte, step) along the lower convex hull of a unit's choices: falling rates."""
        sizes = {i: unit.weight_bytes(unit.choices[i]) for i in losses}
        at = min(losses, key=lambda i: (sizes[i], i))
        rated = []
        while not unit.choices[at].is_float:
            gains = [
                ((losses[at] - losses[i]) / max(sizes[i] - sizes[at], 1e-9), i)
                for i in losses
                if i != at and (losses[i] < losses[at] or unit.choices[i].is_float)
            ]
            rate, at = max(gains)
            rated.append((rate, (unit.name, at)))
        return rated

    def _after(self, steps: list[Step], transforms: Transforms) -> Recipe:
        space = self.problem.space
        choice = {u.name: min(u.choices, key=u.weight_bytes) for u in space.tunable}
        return space.recipe(
            choice | {name: space.by_name[name].choices[i] for name, i in steps}, transforms
        )
