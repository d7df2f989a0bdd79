"""The whole front at a run's end: from the scores that the search paid for, sizes that it did not
try as well."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median

import numpy as np

from octavo.core.contract.strategy import Believed
from octavo.core.numerics.loss_tables import front
from octavo.core.results.front import Front
from octavo.core.scoring.front import FrontPoint, Kind, with_unbeaten
from octavo.core.sensitivity.by_op import most_asked
from octavo.core.sensitivity.prices import of_one_unit
from octavo.core.sensitivity.service import SensitivityService
from octavo.core.tuning.bench import Backend, Bench
from octavo.core.values.budgets import average_bits
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import OpScheme, PartChoice
from octavo.core.values.space import Unit
from octavo.core.values.trial import Trial

UNIFORM = (2, 3, 4, 8)
"""Widths that other tools are run at: what a front is compared with."""

MOST = 24
"""Believed points that are kept: each has a recipe as long as the model has ops."""


def whole_front(bench: Bench, best: Trial) -> Front:
    """Return every point of size against loss that the run knows; nothing is computed anew.

    Trials are points by what was measured of them. Where the search asked for sensitivities, each
    recipe of the best trial's backend has a believed loss: the sum over its ops. From these come
    the believed points, and one width for all. Where something was learned after the rounding, the
    believed loss counts by the share that held-out samples say is left.

    Args:
        bench: The run's; its float model is scored.
        best: What the run hands back.
    """
    backend = bench.backends.get(best.recipe.backend)
    if backend is None or not backend.searched.tunable:
        return Front()
    known = _Known(bench, backend, best.recipe.transforms)
    complete = [t for t in bench.trials if t.state == "complete"]
    measured = {t.recipe.digest: t for t in (*complete, bench.baseline)}
    trials = [known.point("trial", t.recipe, t) for t in measured.values()]
    uniform = [
        known.point("uniform", recipe, measured.get(recipe.digest))
        for recipe in known.uniform()
    ]
    # What was measured, or is one width for all, is a point already.
    there = {*measured, *(point.recipe.digest for point in uniform)}
    believed = [
        point
        for point in known.believed()
        if len(point.recipe) and point.recipe.digest not in there
    ]
    return Front(with_unbeaten([*trials, *uniform, *believed]))


@dataclass(frozen=True)
class _Known:
    """What a run knows of sizes and losses on one backend.

    Attributes:
        bench: The run's.
        backend: The backend.
        transforms: Under which losses are looked up.
    """

    bench: Bench
    backend: Backend
    transforms: tuple[PartChoice, ...]

    def point(
        self, kind: Kind, recipe: Recipe, trial: Trial | None = None
    ) -> FrontPoint:
        """Return a recipe's point.

        Args:
            kind: Of the point.
            recipe: Its recipe.
            trial: That measured it; None where none did.
        """
        size = self._size(recipe, trial)
        is_own = recipe.backend == self.backend.opened.name
        space = self.bench.backends[recipe.backend].space
        return FrontPoint(
            kind,
            size,
            size / max(1, self._float_size),
            average_bits(space, recipe.schemes),
            self._loss(recipe, trial) if is_own else None,
            recipe,
            sensitivity=self._kind,
            trial=trial.number if trial is not None else None,
            scores=dict(trial.metrics) if trial is not None else {},
            passed=trial.passed if trial is not None else None,
        )

    def uniform(self) -> Iterator[Recipe]:
        """Yield a recipe for each usual width that every op with a choice of widths offers."""
        for bits in UNIFORM:
            chosen = {}
            for unit, losses in zip(self._units, self._losses, strict=True):
                own = [i for i, c in enumerate(unit.choices) if _bits(c) == bits]
                known = [i for i in own if math.isfinite(losses[i])]
                if known:
                    chosen[unit.name] = unit.choices[min(known, key=losses.__getitem__)]
            if self._kind and len(chosen) == len(self._units):
                yield self.backend.searched.recipe(chosen, self.transforms)

    def believed(self) -> list[FrontPoint]:
        """Return points of the least believed loss, from the smallest on, in steps of about one
        size.

        They are those that the strategy went by, where it tells them: it may know more than what
        the service was asked for.
        """
        told = self.bench.front().get(self.backend.opened.name, ())
        if not told:
            return [self.point("believed", recipe) for recipe in self._steps()]
        places = _spread(np.array([each.bytes for each in told]), MOST)
        return [self._told(told[place]) for place in places]

    def _told(self, told: Believed) -> FrontPoint:
        size = min(self._float_size, told.bytes + self._beside)
        return FrontPoint(
            "believed",
            size,
            size / max(1, self._float_size),
            told.bits,
            told.loss,
            told.recipe,
            sensitivity=self._kind,
        )

    def _steps(self) -> Iterator[Recipe]:
        """Yield recipes from the losses that the service knows."""
        if not self._kind:
            return
        sizes = [
            np.array([unit.weight_bytes(choice) for choice in unit.choices])
            for unit in self._units
        ]
        whole = front(self._losses, sizes)
        for place in _spread(whole.uses, MOST):
            picks = zip(self._units, whole.picks(place), strict=True)
            chosen = {unit.name: unit.choices[pick] for unit, pick in picks}
            yield self.backend.searched.recipe(chosen, self.transforms)

    @property
    def _units(self) -> Sequence[Unit]:
        return self.backend.searched.tunable

    @cached_property
    def _float_size(self) -> int:
        return self.bench.reference.bytes

    @cached_property
    def _service(self) -> SensitivityService | None:
        return self.bench.sensitivities.get(self.backend.opened.name)

    @cached_property
    def _kind(self) -> str:
        """The sensitivity that the search asked of the most units; of equals the most direct.

        '' where it asked none, or none of half the units: their sum would say little.
        """
        asked = Counter[str]()
        for unit in self._units:
            kinds = {k for choice in unit.choices for k in self._known(unit, choice)}
            asked.update(kinds)
        enough = [kind for kind in asked if 2 * asked[kind] >= len(self._units)]
        return most_asked({kind: asked[kind] for kind in enough})

    def _known(self, unit: Unit, choice: OpScheme) -> dict[str, float]:
        if self._service is None or choice.is_float:
            return {}
        return self._service.known(unit.name, choice, self.transforms)

    @cached_property
    def _losses(self) -> list[np.ndarray]:
        """For each unit, the believed loss of each choice; infinite where it is not known."""
        return [
            np.array([self._unit_loss(unit, choice) for choice in unit.choices])
            for unit in self._units
        ]

    def _unit_loss(self, unit: Unit, choice: OpScheme) -> float:
        if choice.is_float:
            return 0.0
        known = self._known(unit, choice)
        # What the search asked in another way of the same unit compares with it.
        found = (known[kind] for kind in of_one_unit(self._kind) if kind in known)
        return next(found, math.inf)

    def _loss(self, recipe: Recipe, trial: Trial | None) -> float | None:
        """Return what a recipe is believed to lose; None where that of one of its ops is not
        known."""
        if not self._kind:
            return None
        total = sum(self._unit_loss(u, recipe[u.ops[0]]) for u in self._units)
        if not math.isfinite(total):
            return None
        if not recipe.recovery:
            return total
        if trial is None or not trial.is_gain or not trial.distances["before"]:
            return None
        return total * trial.distances["after"] / trial.distances["before"]

    def _size(self, recipe: Recipe, trial: Trial | None) -> float:
        """Return a file's bytes: measured, or what its weights take and what lies beside them."""
        measured = trial.objectives.get("size") if trial is not None else None
        if measured is not None:
            return measured.value
        if not len(recipe):
            return self._float_size
        return min(self._float_size, self._weights(recipe) + self._beside)

    def _weights(self, recipe: Recipe) -> float:
        space = self.bench.backends[recipe.backend].space
        return sum(u.weight_bytes(recipe[u.ops[0]]) for u in space.tunable)

    @cached_property
    def _beside(self) -> float:
        """What a file holds beside the weights with a choice: as trials' files did."""
        own = self.backend.opened.name
        found = [
            trial.objectives["size"].value - self._weights(trial.recipe)
            for trial in self.bench.trials
            if trial.recipe.backend == own and "size" in trial.objectives
        ]
        if found:
            return median(found)
        return max(0.0, self._float_size - self._weights(Recipe(backend=own)))


def _bits(choice: OpScheme) -> int | None:
    return choice.weight.bits if choice.weight is not None else None


def _spread(totals: np.ndarray, most: int) -> Iterable[int]:
    """Return places of sorted totals, at most so many, at about equal ratios, both ends among
    them."""
    if len(totals) <= most:
        return range(len(totals))
    wanted = np.geomspace(totals[0], totals[-1], most)
    return sorted({int(np.argmin(np.abs(totals - t))) for t in wanted})


__all__ = ["whole_front"]
