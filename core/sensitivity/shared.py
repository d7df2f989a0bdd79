"""Sensitivities shared between the backends of one run: equal rounding hurts alike everywhere.

A model that passes from one backend to another keeps its weights and their order, and loses its
names. Two units are counterparts if they have the same op type, number of weights and output
channels, and the same place among all such units of their backend, which must have equally many of
them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from octavo.core.contract.strategy import RecipeSensitivity, Sensitivity
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import OpScheme, PartChoice
from octavo.core.values.space import TuningSpace

from .service import SensitivityService

Signature = tuple[str, int, int, int, int]
"""(type, weights, channels, place among the units of these three, how many there are)."""

Key = tuple[str, Signature, OpScheme, tuple[PartChoice, ...]]
SharedScores = dict[Key, float]


def signatures(space: TuningSpace) -> dict[str, Signature]:
    """Return (type, weights, channels, place, how many there are) of each unit that has weights."""
    kinds = [(u.type, u.parameters, u.channels) for u in space.units]
    total = Counter(kinds)
    seen = Counter[tuple[str, int, int]]()
    found: dict[str, Signature] = {}
    for unit, kind in zip(space.units, kinds, strict=True):
        if unit.parameters:
            found[unit.name] = (*kind, seen[kind], total[kind])
        seen[kind] += 1
    return found


class SharedSensitivity(RecipeSensitivity):
    """One backend's service, which asks itself only what no other backend's has answered.

    An answer for a unit is one for its counterparts. Whole recipes are never shared: how rounding
    errors meet depends on the backend's arithmetic.

    Args:
        own: This backend's service.
        space: Its space.
        scores: What all backends of the run share.
    """

    def __init__(
        self, own: SensitivityService, space: TuningSpace, scores: SharedScores
    ) -> None:
        self.own = own
        self._signatures = signatures(space)
        self._scores = scores

    @property
    def kinds(self) -> tuple[str, ...]:
        """What can be asked for on this backend."""
        return self.own.kinds

    def __call__(
        self, kind: str, pairs: Sequence[tuple[str, OpScheme]]
    ) -> Sequence[float]:
        """Return one loss >= 0 for each (unit name, scheme)."""
        return self._ask(kind, pairs, ())

    @property
    def preferred(self) -> str:
        """The best kind on this backend."""
        return self.own.preferred

    def price(
        self,
        kind: str,
        pairs: Sequence[tuple[str, OpScheme]],
        transforms: tuple[PartChoice, ...] = (),
    ) -> int:
        """Return how many runs of a batch asking for these would still cost."""
        missing = [
            pair
            for pair in pairs
            if self._key(kind, *pair, transforms) not in self._scores
        ]
        return self.own.price(kind, missing, transforms)

    def around(self, recipe: Recipe) -> Sensitivity:
        """Return the losses of units as changes of a whole recipe."""
        return self.own.around(recipe)

    def interaction(self, recipe: Recipe) -> float:
        """Return the measured distance of a whole recipe over the sum of its units' losses."""
        return self.own.interaction(recipe)

    def under(self, transforms: tuple[PartChoice, ...]) -> Sensitivity:
        """Return the service for the model after ``transforms``."""
        return lambda kind, pairs: self._ask(kind, pairs, transforms)

    def distances(self, recipes: Sequence[Recipe]) -> Sequence[float]:
        """Return the output distance of each whole recipe."""
        return self.own.distances(recipes)

    def _ask(
        self,
        kind: str,
        pairs: Sequence[tuple[str, OpScheme]],
        transforms: tuple[PartChoice, ...],
    ) -> Sequence[float]:
        keys = [self._key(kind, name, scheme, transforms) for name, scheme in pairs]
        missing = [
            i for i, key in enumerate(keys) if key is None or key not in self._scores
        ]
        service = self.own.under(transforms)
        losses = service(kind, [pairs[i] for i in missing])
        found = dict(zip(missing, losses, strict=True))
        answers = []
        for i, key in enumerate(keys):
            if key is None:
                answers.append(found[i])
                continue
            loss = found[i] if i in found else self._scores[key]
            if i not in found:
                self.own.lend(kind, *pairs[i], transforms, loss)
            # What one backend cannot carry out may be possible on another.
            if math.isfinite(loss):
                self._scores[key] = loss
            answers.append(loss)
        return answers

    def _key(
        self, kind: str, name: str, scheme: OpScheme, transforms: tuple[PartChoice, ...]
    ) -> Key | None:
        """Return what counterparts have in common; None for a unit without weights."""
        signature = self._signatures.get(name)
        return None if signature is None else (kind, signature, scheme, transforms)
