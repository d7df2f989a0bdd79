"""How the losses of single units meet in a whole recipe, and what they are around one."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Protocol

from octavo.core.contract.strategy import Sensitivity
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import FLOAT, OpScheme, PartChoice
from octavo.core.values.space import TuningSpace

Pair = tuple[str, OpScheme]


class _Distances(Protocol):
    """What measures whole recipes."""

    def distances(self, recipes: Sequence[Recipe]) -> Sequence[float]:
        """Return the output distance of each."""

    def under(self, transforms: tuple[PartChoice, ...]) -> Sensitivity:
        """Return the losses of units after transforms."""


class Around:
    """Losses of units as changes of one whole recipe, where losses do not add up.

    The loss of (unit, scheme) is distance(recipe with the unit under the scheme) less
    distance(recipe with the unit in float), and never below 0: in a recipe that is far from the
    float model, what a unit adds may be hidden by the others, or grow by them.

    Args:
        service: Measures the recipes.
        space: Theirs.
        recipe: The one around which they are taken.
    """

    def __init__(self, service: _Distances, space: TuningSpace, recipe: Recipe) -> None:
        self._service = service
        self._space = space
        self._recipe = recipe

    def __call__(self, kind: str, pairs: Sequence[Pair]) -> Sequence[float]:
        """Return one loss >= 0 for each (unit name, scheme), whatever the kind."""
        recipes: list[Recipe] = []
        for name, scheme in pairs:
            recipes.append(self._with(name, scheme))
            recipes.append(self._with(name, FLOAT))
        found = self._service.distances(recipes)
        taken = zip(found[::2], found[1::2], strict=True)
        return [_change(under, without) for under, without in taken]

    def _with(self, name: str, scheme: OpScheme) -> Recipe:
        """Return the recipe with one unit under another scheme."""
        recipe = self._recipe
        schemes = dict(recipe.schemes)
        schemes.update(self._space.by_name[name].schemes(scheme))
        return Recipe(schemes, recipe.transforms, recipe.backend, recipe.recovery)


def _change(under: float, without: float) -> float:
    """Return what a unit adds; infinite where either could not be measured."""
    if not (isfinite(under) and isfinite(without)):
        return float("inf")
    return max(0.0, under - without)


def interaction(service: _Distances, space: TuningSpace, recipe: Recipe) -> float:
    """Return the measured distance of a recipe over the sum of its units' losses.

    Args:
        service: Measures, and knows the units' losses.
        space: The recipe's.
        recipe: A whole recipe.
    """
    pairs = [(u.name, recipe[u.ops[0]]) for u in space.tunable]
    ask = service.under(recipe.transforms)
    total = sum(ask("auto", pairs))
    (whole,) = service.distances([recipe])
    return whole / total if total else 1.0
