"""The sensitivity of each op of one recipe: of what a search asked, or a cheap one afterwards."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from octavo.core.calibration.data import resized
from octavo.core.contract.adapter import Batch
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import OpScheme
from octavo.core.values.space import Unit

from .prices import of_one_unit
from .service import SensitivityService

_DIRECT_FIRST = (
    "output_distance",
    "gradient",
    "hessian_trace",
    "hessian",
    "weight_error",
)
_CHEAP = ("weight_error", "hessian")
"""Computed from weights and one pass over a few batches, whatever the number of ops."""

SAMPLES = 4
"""Samples that a sensitivity is computed on which no search asked for: their images or tokens are
thousands of rows, and the price is the matrices of their products."""


@dataclass(frozen=True)
class UnitLoss:
    """How much quantizing one unit alone costs.

    Attributes:
        loss: Finite, >= 0.
        kind: Which sensitivity it is.
        scheme: What the unit takes: in the recipe, or for a unit in float the scheme that would
            hurt least of those that were looked at.
        unit: The unit.
    """

    loss: float
    kind: str
    scheme: OpScheme
    unit: Unit


def losses_of(
    service: SensitivityService,
    recipe: Recipe,
    tried: Mapping[str, OpScheme],
    has_time: Callable[[], bool],
) -> tuple[list[UnitLoss], int]:
    """Return the losses of the units of a recipe, all in one unit, so that they compare.

    The kind is the one that the search asked most of these units for, of equals the most direct.
    Where that is a cheap one, what is missing is computed; where the search asked for none, a cheap
    one is, on a few samples.

    Args:
        service: Knows what the search asked for.
        recipe: What each unit takes.
        tried: Unit name -> a scheme that some trial quantized it with, where ``recipe`` leaves it
            in float; what that would cost may be computed.
        has_time: Whether one more may be computed.

    Returns:
        The losses in execution order, and of how many units none was found for lack of time.
    """
    units = service.realizer.space.tunable
    asked = Counter[str]()
    for unit in units:
        kinds: set[str] = set()
        for scheme in _looked_at(unit, recipe):
            kinds.update(service.known(unit.name, scheme, recipe.transforms))
        asked.update(kinds)
    kind = most_asked(asked) or _CHEAP[0]
    ask = _Cheap(service, few=not asked)
    can_compute = kind in _CHEAP and bool(service.batches)
    found = []
    late = 0
    for unit in units:
        loss = _known(service, kind, unit, recipe)
        if loss is None and can_compute and has_time():
            loss = ask.loss(kind, unit, recipe, tried)
        elif loss is None and can_compute:
            late += 1
        if loss is not None:
            found.append(loss)
    return found, late


def most_asked(asked: Mapping[str, int]) -> str:
    """Return the kind that was asked for most, of equals the most direct; '' where none was.

    Args:
        asked: Kind -> of how many units.
    """
    return max(sorted(asked), key=lambda k: (asked[k], -_rank(k)), default="")


def _rank(kind: str) -> int:
    return _DIRECT_FIRST.index(kind) if kind in _DIRECT_FIRST else len(_DIRECT_FIRST)


def _looked_at(unit: Unit, recipe: Recipe) -> tuple[OpScheme, ...]:
    """Return the schemes whose loss says something of what a unit takes."""
    taken = recipe[unit.ops[0]]
    if not taken.is_float:
        return (taken,)
    return tuple(scheme for scheme in unit.choices if not scheme.is_float)


def _known(
    service: SensitivityService, kind: str, unit: Unit, recipe: Recipe
) -> UnitLoss | None:
    """Return a unit's loss by what is known already; the least where it is in float."""
    best: UnitLoss | None = None
    for scheme in _looked_at(unit, recipe):
        known = service.known(unit.name, scheme, recipe.transforms)
        for one in of_one_unit(kind):
            if one in known:
                if best is None or known[one] < best.loss:
                    best = UnitLoss(known[one], one, scheme, unit)
                break
    return best


class _Cheap:
    """Computes cheap sensitivities once a search is over.

    Args:
        service: The search's.
        few: Look at a few samples: the search has not paid for a look at more.
    """

    def __init__(self, service: SensitivityService, *, few: bool) -> None:
        self._service = service
        self._is_sure = not few
        if few and service.batches:
            self._service = _over(service, resized(service.batches[0], SAMPLES))
        self._whole = service

    def loss(
        self, kind: str, unit: Unit, recipe: Recipe, tried: Mapping[str, OpScheme]
    ) -> UnitLoss | None:
        """Return a unit's loss; None for one that nothing quantized, or that cannot be found."""
        scheme = recipe[unit.ops[0]]
        if scheme.is_float:
            scheme = tried.get(unit.name, scheme)
        if scheme.is_float:
            return None
        loss = self._asked(kind, unit.name, scheme, recipe)
        if not (self._is_sure or math.isfinite(loss)):
            # Some models take batches of one size alone.
            self._service = _over(self._whole, self._whole.batches[0])
            loss = self._asked(kind, unit.name, scheme, recipe)
        self._is_sure = True
        return UnitLoss(loss, kind, scheme, unit) if math.isfinite(loss) else None

    def _asked(self, kind: str, unit: str, scheme: OpScheme, recipe: Recipe) -> float:
        ask = self._service.under(recipe.transforms)
        (loss,) = ask(kind, [(unit, scheme)])
        return loss


def _over(service: SensitivityService, batch: Batch) -> SensitivityService:
    """Return the same service over one batch."""
    return SensitivityService(service.opened, service.realizer, (batch,))
