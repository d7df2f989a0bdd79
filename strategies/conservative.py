"""Conservative: from all-float, one op type after the other is quantized, if the goal is kept."""

from __future__ import annotations

from collections.abc import Iterator

from octavo.core.values.recipe import Recipe
from octavo.core.values.space import TuningSpace

from .fallback import Choice, Fallback
from .sequential import Search, passed

ORDER = ("conv", "matmul", "linear")
"""Neural-compressor's; other types follow, the one with the most weights first."""


class Conservative(Fallback):
    """At most one evaluation for each op type, and one for each transform where a type fails."""

    def search(self) -> Search:
        """Add type after type."""
        space = self.space
        kept: Choice = {}
        done, left = [], []
        for kind in self._order():
            added = {unit.name: unit.choices[0] for unit in space.types[kind]}
            wider = kept | added
            recipes = _under_each_transform(space, wider)
            trials = yield from self.run(recipes, until=passed)
            if any(t.passed for t in trials):
                kept = wider
                done.append(kind)
            else:
                left.append(kind)
        self.note = f"quantized: {', '.join(done) or 'no op type'}"
        if left:
            self.note += f"; left in float: {', '.join(left)}"

    def _order(self) -> list[str]:
        """Return the op types in the order in which they are quantized."""
        types = self.space.types
        weights = {}
        for kind, units in types.items():
            weights[kind] = sum(unit.parameters for unit in units)
        named = [kind for kind in ORDER if kind in types]
        others = [kind for kind in types if kind not in ORDER]
        others.sort(key=lambda kind: -weights[kind])
        return [*named, *others]


def _under_each_transform(space: TuningSpace, choice: Choice) -> Iterator[Recipe]:
    for transforms in space.transforms:
        yield space.recipe(choice, transforms)
