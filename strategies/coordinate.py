"""Coordinate descent over settings: transform (smoothing alpha), and calibrator and algorithm (clip) of each op type."""

from __future__ import annotations

from collections.abc import Iterable

from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import OpScheme
from octavo.core.values.trial import Trial

from . import CoordinateConfig
from .fallback import Choice, Fallback
from .losses import Transforms
from .sequential import Search


class Coordinate(Fallback):
    """One setting at a time, all others fixed; the best value stays. Ends after a sweep that changes nothing.

    The values of one setting do not wait for each other, so that they can be tried in parallel.
    """

    config: CoordinateConfig

    def search(self) -> Search:
        """Sweep until nothing improves."""
        space = self.problem.space
        best = yield from self.one(space.recipe(space.first()))
        sweeps = 0
        for _ in range(self.config.sweeps):
            sweeps += 1
            before = best
            best = min([best, *(yield from self.run(self._transformed(best)))], key=self._better)
            for kind in space.types:
                best = min(
                    [best, *(yield from self.run(self._varied(best, kind)))], key=self._better
                )
            if best is before:
                break
        self.note = f"settings chosen in {sweeps} sweeps" + (
            "" if best.passed else "; none reaches the goal with every op quantized"
        )

    @staticmethod
    def _better(trial: Trial) -> float:
        return -trial.margin

    def _transformed(self, best: Trial) -> Iterable[Recipe]:
        space = self.problem.space
        choice = self.choice(best)
        return [space.recipe(choice, t) for t in space.transforms if t != best.recipe.transforms]

    def _varied(self, best: Trial, kind: str) -> Iterable[Recipe]:
        """Return the recipe with other settings for one op type: schemes alike in everything but algorithm and calibrator."""
        space = self.problem.space
        base: Choice = self.choice(best)
        units = space.types[kind]
        settings = dict.fromkeys(
            (s.algorithm, s.calibrator) for u in units for s in u.choices if _alike(s, base[u.name])
        )
        found = []
        for algorithm, calibrator in settings:
            changed = dict(base)
            for unit in units:
                wanted = [
                    s
                    for s in unit.choices
                    if _alike(s, base[unit.name])
                    and (s.algorithm, s.calibrator) == (algorithm, calibrator)
                ]
                changed[unit.name] = wanted[0] if wanted else base[unit.name]
            if changed != base:
                found.append(self._recipe(changed, best.recipe.transforms))
        return found

    def _recipe(self, choice: Choice, transforms: Transforms) -> Recipe:
        return self.problem.space.recipe(choice, transforms)


def _alike(one: OpScheme, other: OpScheme) -> bool:
    return (one.mode, one.weight, one.input, one.output) == (
        other.mode,
        other.weight,
        other.input,
        other.output,
    )
