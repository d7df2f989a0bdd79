"""Exhaustive search: every recipe of the space, once, first choices first."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from octavo.core.values.recipe import Recipe
from octavo.strategies.beliefs.picks import chosen

from .sequential import Search, Sequential

WRITTEN_OUT = 10**9  # counts below it are written digit by digit


def graded(sizes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Yield every index tuple of a mixed-radix space once, by the sum of indices.

    Those of one sum come lexicographically.

    Args:
        sizes: Number of options at each position, all >= 1.
    """
    room = [0]  # room[i]: largest sum that the last i positions can hold
    for size in reversed(sizes):
        room.append(room[-1] + size - 1)

    def of_sum(position: int, rest: int) -> Iterator[tuple[int, ...]]:
        if position == len(sizes):
            yield ()
            return
        after = room[len(sizes) - position - 1]
        least = max(0, rest - after)
        most = min(sizes[position] - 1, rest)
        for index in range(least, most + 1):
            for tail in of_sum(position + 1, rest - index):
                yield (index, *tail)

    for total in range(room[-1] + 1):
        yield from of_sum(0, total)


def scale(count: int) -> str:
    """Write a count so that it stays readable: ``4,096`` or ``about 10^614``."""
    return f"{count:,}" if count < WRITTEN_OUT else f"about 10^{int(math.log10(count))}"


class Exhaustive(Sequential):
    """Enumerates the space by itself, so that nothing is left out or repeated.

    Any trial may run beside any other.
    """

    def search(self) -> Search:
        """Yield the whole space as one batch."""
        yield from self.run(self._all())
        self.note = f"all {scale(self.space.size)} recipes of the space were tried"

    def explain(self) -> str:
        """Print the size of the space and how much of it is done."""
        size = scale(self.space.size)
        return self.note or f"{len(self.known):,} of {size} recipes of the space tried"

    def _all(self) -> Iterator[Recipe]:
        space = self.space
        choices = [len(unit.choices) for unit in space.tunable]
        sizes = [len(space.transforms), *choices]
        for transforms, *picks in graded(sizes):
            yield space.recipe(chosen(space, picks), space.transforms[transforms])
