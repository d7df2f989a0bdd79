"""Sensitivities shared between the backends of one run: the same weight rounded the same way hurts alike everywhere.

A model that passes from one backend to another keeps its weights and their order, and loses its names. Two units are
counterparts if they have the same op type, number of weights and output channels, and the same place among all such units of
their backend, which must have equally many of them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from octavo.core.contract.strategy import RecipeSensitivity, Sensitivity
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import OpScheme, PartChoice
from octavo.core.values.space import TuningSpace

from .service import SensitivityService

Signature = tuple[str, int, int, int, int]
Scores = dict[tuple[str, Signature, OpScheme, tuple[PartChoice, ...]], float]


def signatures(space: TuningSpace) -> dict[str, Signature]:
    """Return (type, weights, channels, place, how many there are) of each unit that has weights."""
    kinds = [(u.type, u.parameters, u.channels) for u in space.units]
    total, seen = Counter(kinds), Counter[tuple[str, int, int]]()
    found: dict[str, Signature] = {}
    for unit, kind in zip(space.units, kinds, strict=True):
        if unit.parameters:
            found[unit.name] = (*kind, seen[kind], total[kind])
        seen[kind] += 1
    return found


class SharedSensitivity(RecipeSensitivity):
    """One backend's service, which first looks whether another backend of the run has scored the counterpart.

    Whole recipes are never shared: how rounding errors meet depends on the backend's arithmetic.

    Args:
        own: This backend's service.
        space: Its space.
        scores: What all backends of the run share.
    """

    def __init__(self, own: SensitivityService, space: TuningSpace, scores: Scores) -> None:
        self.own = own
        self._signatures = signatures(space)
        self._scores = scores

    @property
    def kinds(self) -> tuple[str, ...]:
        """What can be asked for on this backend."""
        return self.own.kinds

    def __call__(self, kind: str, pairs: Sequence[tuple[str, OpScheme]]) -> Sequence[float]:
        """Return one loss >= 0 for each (unit name, scheme)."""
        return self._ask(kind, pairs, ())

    def under(self, transforms: tuple[PartChoice, ...]) -> Sensitivity:
        """Return the service for the model after ``transforms``."""
        return lambda kind, pairs: self._ask(kind, pairs, transforms)

    def distances(self, recipes: Sequence[Recipe]) -> Sequence[float]:
        """Return the output distance of each whole recipe."""
        return self.own.distances(recipes)

    def _ask(
        self, kind: str, pairs: Sequence[tuple[str, OpScheme]], transforms: tuple[PartChoice, ...]
    ) -> Sequence[float]:
        keys = [
            (kind, self._signatures[n], s, transforms) if n in self._signatures else None
            for n, s in pairs
        ]
        missing = [i for i, key in enumerate(keys) if key is None or key not in self._scores]
        found = dict(
            zip(missing, self.own.under(transforms)(kind, [pairs[i] for i in missing]), strict=True)
        )
        answers = []
        for i, key in enumerate(keys):
            if key is None:
                answers.append(found[i])
            else:
                answers.append(found[i] if i in found else self._scores[key])
                # What one backend cannot carry out may be possible on another.
                if math.isfinite(answers[-1]):
                    self._scores[key] = answers[-1]
        return answers


def lend_traces(services: Sequence[SensitivityService]) -> None:
    """Let backends without gradients take the traces of the Hessian from one that has them.

    A trace belongs to a weight, and counterparts have the same weights. It is lent to a backend if each of its tunable units
    has weights and a counterpart whose ops come in the same number.
    """
    lender = next((s for s in services if "gradient" in s.kinds), None)
    if lender is None:
        return
    there = {signature: name for name, signature in signatures(lender.realizer.space).items()}
    for service in services:
        names = _matched(service, lender, there) if "gradient" not in service.kinds else {}
        if names:
            service.curvature.lent = lambda transforms, names=names: _renamed(
                lender.curvature.traces(transforms), names
            )


def _matched(
    service: SensitivityService, lender: SensitivityService, there: Mapping[Signature, str]
) -> dict[str, str]:
    """Return own weight name -> the lender's; empty unless every tunable unit has its counterpart."""
    own, found = signatures(service.realizer.space), dict[str, str]()
    for unit in service.realizer.space.tunable:
        other = lender.realizer.space.by_name.get(
            there.get(own.get(unit.name, ("", 0, 0, 0, 0)), "")
        )
        if other is None or not other.tunable or len(other.ops) != len(unit.ops):
            return {}
        for mine, its in zip(unit.ops, other.ops, strict=True):
            own_weights, its_weights = (
                service.opened.view.by_name[mine].weights,
                lender.opened.view.by_name[its].weights,
            )
            if not own_weights or len(own_weights) != len(its_weights):
                return {}
            found.update((a.name, b.name) for a, b in zip(own_weights, its_weights, strict=True))
    return found


def _renamed(traces: Mapping[str, float], names: Mapping[str, str]) -> dict[str, float]:
    return {own: traces[other] for own, other in names.items()}
