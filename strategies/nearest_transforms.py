"""Which model-wide transforms keep a recipe's outputs nearest to the float model's."""

from __future__ import annotations

from octavo.core.contract.strategy import RecipeSensitivity
from octavo.core.values.space import TuningSpace
from octavo.strategies.beliefs.losses import Transforms
from octavo.strategies.beliefs.picks import Picks, chosen

CLEARLY = 0.7  # of the plain distance, for transforms that no evaluation has compared


def nearness(
    space: TuningSpace, service: RecipeSensitivity, picks: Picks
) -> dict[Transforms, float]:
    """Return the distance of a recipe's outputs to the float model's under each transform."""
    every = space.transforms
    schemes = chosen(space, picks)
    distances = service.distances([space.recipe(schemes, t) for t in every])
    return dict(zip(every, distances, strict=True))


def least_harmful(space: TuningSpace, service: RecipeSensitivity) -> Transforms:
    """Return transforms to go on with where none can reach the goal with the cheapest recipe.

    Which one is worth it shows where outputs are near: with the backend's first choices.
    """
    first = nearness(space, service, (0,) * len(space.tunable))
    best = min(first, key=lambda t: first[t])
    required = space.required
    return best if first[best] < CLEARLY * first[required] else required
