"""Exhaustive search: every recipe of the space, once, first choices first."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from octavo.core.values.recipe import Recipe

from .sequential import Search, Sequential


def graded(sizes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Yield every index tuple of a mixed-radix space once, by the sum of indices, then lexicographically.

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
        for index in range(max(0, rest - after), min(sizes[position] - 1, rest) + 1):
            for tail in of_sum(position + 1, rest - index):
                yield (index, *tail)

    for total in range(room[-1] + 1):
        yield from of_sum(0, total)


def scale(count: int) -> str:
    """Write a count so that it stays readable: ``4,096`` or ``about 10^614``."""
    return f"{count:,}" if count < 10**9 else f"about 10^{int(math.log10(count))}"


class Exhaustive(Sequential):
    """Enumerates the space by itself, so that nothing is left out or repeated. Any trial may run beside any other."""

    def search(self) -> Search:
        """Yield the whole space as one batch."""
        yield from self.run(self._all())
        self.note = f"all {scale(self.problem.space.size)} recipes of the space were tried"

    def explain(self) -> str:
        """Print the size of the space and how much of it is done."""
        return (
            self.note
            or f"{len(self.known):,} of {scale(self.problem.space.size)} recipes of the space tried"
        )

    def _all(self) -> Iterator[Recipe]:
        space = self.problem.space
        units = space.tunable
        for index, *picks in graded([len(space.transforms), *(len(u.choices) for u in units)]):
            yield space.recipe(
                {u.name: u.choices[i] for u, i in zip(units, picks, strict=True)},
                space.transforms[index],
            )
