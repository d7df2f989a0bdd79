"""The least believed loss within limits, and the whole front of loss by size."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from octavo.core.contract.strategy import (
    Believed,
    Problem,
    RecipeSensitivity,
    Sensitivity,
)
from octavo.core.errors import ConfigError
from octavo.core.numerics.knapsack import exact
from octavo.core.numerics.loss_tables import Front, front
from octavo.core.values.budgets import average_bits
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import OpScheme

from .limits import Limits
from .losses import Transforms, shortlist
from .picks import Picks, chosen, total, weight_bytes
from .thrift import worthwhile_losses

CAUTION = 4.0
"""Times the worst loss that is known: what a choice counts whose probe failed."""

SHOWN = 64
"""Points of a front that are handed on with their recipes, at most."""


class Allocation:
    """What each choice of each unit is believed to lose, and what follows from it.

    A choice that is not worth it, cannot be carried out or whose probe failed loses infinitely
    much; only where nothing else fits, what could not be found out is taken, as worse than all that
    could.

    Args:
        problem: Gives the space and the sensitivities.
        kind: Of sensitivity.
        transforms: What all recipes have.
        losses: Of every choice of each tunable unit; None: the service is asked for those of a
            shortlist.
    """

    def __init__(
        self,
        problem: Problem,
        kind: str,
        transforms: Transforms,
        losses: Sequence[np.ndarray] | None = None,
    ) -> None:
        self._problem = problem
        self._space = problem.space
        self.kind = kind
        self.transforms = transforms
        rows = losses if losses is not None else self._asked()
        # NaN is what nobody asked for, infinity what could not be found out.
        self._unasked = [np.isnan(row) for row in rows]
        self.losses = [np.where(np.isnan(row), np.inf, row) for row in rows]

    def _asked(self) -> list[np.ndarray]:
        """Return the loss of every choice that is worth it; NaN for the others."""
        listed = shortlist(self._problem, weight_bytes(self._space), self.transforms)
        found = worthwhile_losses(self._problem, self.kind, listed, self.transforms)
        rows = []
        for unit, kept, losses in zip(self._space.tunable, listed, found, strict=True):
            row = np.full(len(unit.choices), np.nan)
            row[kept] = losses
            rows.append(row)
        return rows

    def least(self, limits: Limits) -> Picks:
        """Return the choices of the least loss within limits; of equal loss, of the least use.

        Raises:
            ConfigError: If nothing fits; it says what is the least possible.
        """
        rows = limits.rows()
        try:
            return tuple(exact(self.losses, rows))
        except ConfigError:
            return tuple(exact(self._cautious, rows))

    @cached_property
    def _cautious(self) -> list[np.ndarray]:
        """The losses, with what could not be found out worse than all that could."""
        flat = np.concatenate(self.losses)
        worst = flat[np.isfinite(flat)].max(initial=0.0)
        found = []
        for row, left_out in zip(self.losses, self._unasked, strict=True):
            is_unknown = ~np.isfinite(row) & ~left_out
            found.append(np.where(is_unknown, CAUTION * worst or 1.0, row))
        return found

    def loss(self, picks: Picks) -> float:
        """Return what a recipe is believed to lose."""
        return total(self.losses, picks)

    def recipe(self, picks: Picks) -> Recipe:
        """Return the recipe of choices."""
        return self._space.recipe(chosen(self._space, picks), self.transforms)

    def around(self, service: RecipeSensitivity, recipe: Recipe) -> Allocation:
        """Return the same with losses as changes of a whole recipe."""
        ask: Sensitivity = service.around(recipe)
        changes = iter(ask(self.kind, self._known()))
        losses = []
        for row in self.losses:
            changed = np.full(len(row), np.nan)
            for place in np.flatnonzero(np.isfinite(row)):
                changed[place] = next(changes)
            losses.append(changed)
        return Allocation(self._problem, self.kind, self.transforms, losses)

    def price_around(self, service: RecipeSensitivity) -> int:
        """Return about how many runs of a batch :meth:`around` takes.

        As many as the distances of all known pairs, and one more for each unit.
        """
        known = self._known()
        whole = service.price("output_distance", known, self.transforms)
        each = max(1.0, whole / max(1, len(known)))
        return round(each * (len(known) + len(self.losses)))

    def _known(self) -> list[tuple[str, OpScheme]]:
        """Return the pairs whose loss is known, unit by unit."""
        pairs = []
        for unit, row in zip(self._space.tunable, self.losses, strict=True):
            known = np.flatnonzero(np.isfinite(row))
            pairs += [(unit.name, unit.choices[place]) for place in known]
        return pairs

    @cached_property
    def front(self) -> Front:
        """What no other recipe beats in bytes of the weights and in believed loss."""
        return front(self.losses, weight_bytes(self._space))

    def shown(self, points: int = SHOWN) -> tuple[Believed, ...]:
        """Return points of the front with their recipes, from the fewest bytes on.

        Args:
            points: At most; the first, the last and equal steps of bytes between them.
        """
        uses = self.front.uses
        wanted = np.linspace(uses[0], uses[-1], points)
        places = np.unique(np.searchsorted(uses, wanted * (1 - 1e-12)))
        found = []
        for place in places[places < len(uses)]:
            picks = self.front.picks(int(place))
            recipe = self.recipe(picks)
            bits = average_bits(self._space, recipe.schemes)
            loss = float(self.front.losses[place])
            found.append(Believed(recipe, float(uses[place]), bits, loss))
        return tuple(found)
