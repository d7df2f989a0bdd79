"""How much each unit is thought to suffer, whatever there is to tell it from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from octavo.core.scheme import OpScheme, PartChoice
from octavo.core.sensitivity import RecipeSensitivity
from octavo.core.space import Unit
from octavo.core.strategy import Problem

Transforms = tuple[PartChoice, ...]


def bits(scheme: OpScheme) -> float:
    """Bits of the coarsest tensor of a scheme: 32 in float."""
    return float(min(spec.bits for spec in (scheme.weight, scheme.input, scheme.output) if spec)) if not scheme.is_float else 32.0


def pair_losses(problem: Problem, kind: str, pairs: Sequence[tuple[Unit, OpScheme]], transforms: Transforms = ()) -> list[float]:
    """Return one loss >= 0 for each (unit, scheme) after ``transforms``; 0 in float.

    Without a sensitivity service the noise power of rounding, 4^-bits, stands in, times the unit's parameters: it tells
    schemes apart, and among equal schemes the small units come first.
    """
    asked = [(unit.name, scheme) for unit, scheme in pairs if not scheme.is_float]
    service = problem.sensitivity
    if transforms and isinstance(service, RecipeSensitivity):
        service = service.under(transforms)
    if service is None:
        found = {(u.name, s): 4.0 ** -bits(s) * max(u.parameters, 1) for u, s in pairs}
    else:
        found = dict(zip(asked, map(float, service(kind, asked)), strict=True)) if asked else {}
    return [0.0 if scheme.is_float else found[unit.name, scheme] for unit, scheme in pairs]


def unit_losses(problem: Problem, kind: str, choice: Mapping[str, OpScheme], transforms: Transforms = ()) -> dict[str, float]:
    """Return the loss of each tunable unit under its chosen scheme."""
    units = [u for u in problem.space.tunable if u.name in choice]
    losses = pair_losses(problem, kind, [(u, choice[u.name]) for u in units], transforms)
    return {u.name: loss for u, loss in zip(units, losses, strict=True)}
