"""Mixed-precision prefix search: steps to safer schemes in the order of what they buy, and a binary search on how many to take."""

from __future__ import annotations

import numpy as np

from octavo.core.recipe import Recipe
from octavo.core.space import Unit

from . import PrefixConfig
from .fallback import Fallback
from .losses import Transforms, pair_losses
from .sequential import Search

Step = tuple[str, int]


class Prefix(Fallback):
    """About 1 + log2(steps) evaluations, on the assumption that more steps never hurt."""

    config: PrefixConfig

    def search(self) -> Search:
        """Start from the smallest schemes and search for the shortest passing prefix of steps."""
        space = self.problem.space
        smallest = {u.name: min(u.choices, key=u.weight_bytes) for u in space.tunable}
        trials = yield from self.run((space.recipe(smallest, t) for t in space.transforms), until=lambda t: t.passed)
        best = min(trials, key=self.rank)
        if best.passed:
            self.note = "the smallest scheme everywhere reaches the goal"
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
        self.note = f"{high} of {len(steps)} steps to safer schemes reach the goal" if found else "no prefix but all-float reaches the goal"

    def _steps(self, transforms: Transforms) -> list[Step]:
        """Return (unit, choice) steps, the most loss removed for a byte first; a unit's own steps stay in order."""
        pairs = [(u, s) for u in self.problem.space.tunable for s in u.choices]
        losses = iter(pair_losses(self.problem, self.config.sensitivity, pairs, transforms))
        rated: list[tuple[float, Step]] = []
        for unit in self.problem.space.tunable:
            rated += self._hull(unit, [next(losses) for _ in unit.choices])
        return [step for _, step in sorted(rated, key=lambda r: -r[0])]

    @staticmethod
    def _hull(unit: Unit, losses: list[float]) -> list[tuple[float, Step]]:
        """Return (loss removed for a byte, step) along the lower convex hull of a unit's choices: falling rates."""
        sizes = [unit.weight_bytes(s) for s in unit.choices]
        at = int(np.lexsort((losses, sizes))[0])
        rated = []
        while not unit.choices[at].is_float:
            gains = [
                ((losses[at] - losses[i]) / max(sizes[i] - sizes[at], 1e-9), i)
                for i in range(len(sizes))
                if losses[i] < losses[at] or unit.choices[i].is_float
            ]
            rate, at = max(g for g in gains if g[1] != at)
            rated.append((rate, (unit.name, at)))
        return rated

    def _after(self, steps: list[Step], transforms: Transforms) -> Recipe:
        space = self.problem.space
        choice = {u.name: min(u.choices, key=u.weight_bytes) for u in space.tunable}
        return space.recipe(choice | {name: space.by_name[name].choices[i] for name, i in steps}, transforms)
