"""How much each unit is thought to suffer, whatever there is to tell it from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from octavo.core.contract.strategy import Problem, RecipeSensitivity
from octavo.core.values.scheme import OpScheme, PartChoice
from octavo.core.values.space import Unit

Transforms = tuple[PartChoice, ...]
VARIANTS = (
    3  # of one mode and width, so many are looked at; as many choices or fewer are not thinned out
)


def bits(scheme: OpScheme) -> float:
    """Bits of the coarsest tensor of a scheme: 32 in float."""
    return (
        float(min(spec.bits for spec in (scheme.weight, scheme.input, scheme.output) if spec))
        if not scheme.is_float
        else 32.0
    )


def offers(problem: Problem, kind: str) -> bool:
    """True if the sensitivity service says that it has a kind."""
    return isinstance(problem.sensitivity, RecipeSensitivity) and kind in problem.sensitivity.kinds


def pair_losses(
    problem: Problem, kind: str, pairs: Sequence[tuple[Unit, OpScheme]], transforms: Transforms = ()
) -> list[float]:
    """Return one loss >= 0 for each (unit, scheme) after ``transforms``; 0 in float.

    Without a sensitivity service, or where neither this kind nor ``weight_error`` could be found out for a single pair (the
    service has told why), the noise power of rounding, 4^-bits, stands in, times the unit's parameters: it tells schemes
    apart, and among equal schemes the small units come first.
    """
    asked = [(unit.name, scheme) for unit, scheme in pairs if not scheme.is_float]
    service = problem.sensitivity
    if transforms and isinstance(service, RecipeSensitivity):
        service = service.under(transforms)
    found: dict[tuple[str, OpScheme], float] = {}
    for tried in dict.fromkeys((kind, "weight_error")) if service is not None and asked else ():
        assert service is not None
        found = dict(zip(asked, map(float, service(tried, asked)), strict=True))
        if any(map(math.isfinite, found.values())):
            break
    if not any(map(math.isfinite, found.values())):
        found = {(u.name, s): 4.0 ** -bits(s) * max(u.parameters, 1) for u, s in pairs}
    return [0.0 if scheme.is_float else found[unit.name, scheme] for unit, scheme in pairs]


def unit_losses(
    problem: Problem, kind: str, choice: Mapping[str, OpScheme], transforms: Transforms = ()
) -> dict[str, float]:
    """Return the loss of each tunable unit under its chosen scheme."""
    units = [u for u in problem.space.tunable if u.name in choice]
    losses = pair_losses(problem, kind, [(u, choice[u.name]) for u in units], transforms)
    return {u.name: loss for u, loss in zip(units, losses, strict=True)}


def shortlist(
    problem: Problem, costs: Sequence[np.ndarray], transforms: Transforms = ()
) -> list[list[int]]:
    """Return for each tunable unit the choices worth a run of the model, as indices in their order; float is among them.

    A backend may offer dozens. Of one mode and width the first few in its order and the cheapest are looked at; of those the front
    of cost and weight error, which is cheap to tell, is kept, under budgets that of bytes and weight error too, and of each mode that is not on it the one of the least weight error.

    Args:
        problem: Gives the units and the weight errors.
        costs: The cost of each choice of each unit; infinite where it is out of the question.
        transforms: The transforms under which they are compared.
    """
    listed = []
    for unit, cost in zip(problem.space.tunable, costs, strict=True):
        ways: dict[tuple[str, int], list[int]] = {}
        for index, scheme in enumerate(unit.choices[:-1]):
            if np.isfinite(cost[index]):
                ways.setdefault((scheme.mode, scheme.weight_bits), []).append(index)
        # The cheapest of each is among them, so that whatever limit can be kept at all can be kept by what is listed.
        first = {i for found in ways.values() for i in found[:VARIANTS]}
        listed.append(sorted(first | {min(found, key=cost.__getitem__) for found in ways.values()}))
    units = problem.space.tunable
    pairs = [
        (u, u.choices[i])
        for u, kept in zip(units, listed, strict=True)
        if len(kept) > VARIANTS
        for i in kept
    ]
    errors = iter(pair_losses(problem, "weight_error", pairs, transforms) if pairs else ())
    for row, (kept, cost) in enumerate(zip(listed, costs, strict=True)):
        if len(kept) > VARIANTS:
            lost = {i: next(errors) for i in kept}
            front = _front(kept, cost, lost)
            if problem.budgets:
                # What is hardly slower may be larger: under a limit of size the front of bytes counts as well.
                front |= _front(
                    kept, [units[row].weight_bytes(s) for s in units[row].choices], lost
                )
            # How much a mode loses shows at the model's outputs alone: scales found at run time escape outliers of other batches.
            modes = {units[row].choices[i].mode: i for i in sorted(kept, key=lambda i: -lost[i])}
            seen = {units[row].choices[i].mode for i in front}
            listed[row] = sorted([*front, *(i for mode, i in modes.items() if mode not in seen)])
        listed[row].append(len(units[row].choices) - 1)
    return listed


def _front(
    kept: Sequence[int], cost: Sequence[float] | np.ndarray, lost: Mapping[int, float]
) -> set[int]:
    """Return what clearly loses less than all that costs less."""
    best, front = math.inf, set()
    for index in sorted(kept, key=lambda i: (float(cost[i]), lost[i], i)):
        if lost[index] < 0.9 * best:
            best = lost[index]
            front.add(index)
    return front
