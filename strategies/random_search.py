"""Random: recipes drawn uniformly, none twice."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from octavo.core.values.recipe import Recipe

from . import RandomConfig
from .exhaustive import scale
from .sequential import Search, Sequential

LISTED = 4096  # spaces up to this size are shuffled; larger ones are drawn from


class Random(Sequential):
    """Seeded draws over ops, or over op types; the yardstick for every other search."""

    config: RandomConfig

    def search(self) -> Search:
        """Yield draws until the space is used up."""
        yield from self.run(self._draws())
        self.note = f"all {scale(self._size)} recipes were drawn"

    def explain(self) -> str:
        """Say how much of the space was drawn."""
        return self.note or f"{len(self.known):,} recipes drawn"

    def _draws(self) -> Iterator[Recipe]:
        space = self.problem.space
        units = space.tunable
        if self.config.over == "type":
            knobs = [
                tuple(dict.fromkeys(s for u in us for s in u.choices))
                for us in space.types.values()
            ]
            index = {kind: i for i, kind in enumerate(space.types)}
        else:
            knobs = [u.choices for u in units]
        sizes = [len(space.transforms), *map(len, knobs)]
        self._size = int(np.prod([float(s) for s in sizes])) if len(sizes) < 64 else space.size

        def recipe(point: tuple[int, ...]) -> Recipe:
            choice = {}
            for position, unit in enumerate(units):
                at = index[unit.type] if self.config.over == "type" else position
                wanted = knobs[at][point[at + 1]]
                choice[unit.name] = wanted if wanted in unit.choices else unit.choices[0]
            return space.recipe(choice, space.transforms[point[0]])

        random = np.random.default_rng(self.problem.seed)
        if self._size <= LISTED:
            points = list(itertools.product(*map(range, sizes)))
            yield from (recipe(points[i]) for i in random.permutation(len(points)))
            return
        while True:
            yield recipe(tuple(int(i) for i in random.integers(sizes)))
