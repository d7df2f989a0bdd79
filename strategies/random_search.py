"""Random: recipes drawn uniformly, none twice."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import OpScheme
from octavo.core.values.space import TuningSpace

from . import RandomConfig
from .exhaustive import scale
from .sequential import Search, Sequential

LISTED = 4096  # spaces up to this size are shuffled; larger ones are drawn from

MANY = 64  # knobs from which on a product of sizes is left to Python's integers


@dataclass(frozen=True)
class _Knobs:
    """The decisions of a draw: the transforms, then one for each op, or for each op type.

    Attributes:
        space: The space.
        options: The schemes of each decision.
        follows: Which decision each tunable unit follows.
    """

    space: TuningSpace
    options: tuple[tuple[OpScheme, ...], ...]
    follows: tuple[int, ...]

    @property
    def sizes(self) -> list[int]:
        """Number of alternatives of each decision, the transforms first."""
        return [len(self.space.transforms), *map(len, self.options)]

    def recipe(self, point: Sequence[int]) -> Recipe:
        """Return the recipe of a draw; units that do not offer a scheme take their first choice."""
        transforms, *picks = point
        choice = {}
        for unit, knob in zip(self.space.tunable, self.follows, strict=True):
            wanted = self.options[knob][picks[knob]]
            is_offered = wanted in unit.choices
            choice[unit.name] = wanted if is_offered else unit.choices[0]
        return self.space.recipe(choice, self.space.transforms[transforms])


def _knobs(space: TuningSpace, over: str) -> _Knobs:
    units = space.tunable
    if over == "op":
        own = tuple(unit.choices for unit in units)
        return _Knobs(space, own, tuple(range(len(units))))
    kinds = list(space.types)
    options = []
    for members in space.types.values():
        offered = dict.fromkeys(s for unit in members for s in unit.choices)
        options.append(tuple(offered))
    follows = tuple(kinds.index(unit.type) for unit in units)
    return _Knobs(space, tuple(options), follows)


class Random(Sequential):
    """Seeded draws over ops, or over op types; the yardstick for every other search."""

    config: RandomConfig

    def search(self) -> Search:
        """Yield draws until the space is used up."""
        knobs = _knobs(self.space, self.config.over)
        sizes = knobs.sizes
        size = self.space.size
        if len(sizes) < MANY:
            size = int(np.prod([float(s) for s in sizes]))
        yield from self.run(self._draws(knobs, size))
        self.note = f"all {scale(size)} recipes were drawn"

    def explain(self) -> str:
        """Say how much of the space was drawn."""
        return self.note or f"{len(self.known):,} recipes drawn"

    def _draws(self, knobs: _Knobs, size: int) -> Iterator[Recipe]:
        """Yield recipes: a small space's in a random order, a large one's with repeats."""
        random = np.random.default_rng(self.problem.seed)
        sizes = knobs.sizes
        if size <= LISTED:
            points = list(itertools.product(*map(range, sizes)))
            for index in random.permutation(len(points)):
                yield knobs.recipe(points[index])
            return
        while True:
            yield knobs.recipe([int(i) for i in random.integers(sizes)])
