"""How much each unit is thought to suffer, whatever there is to tell it from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from octavo.core.contract.strategy import Problem, RecipeSensitivity
from octavo.core.values.scheme import OpScheme, PartChoice
from octavo.core.values.space import Unit

Transforms = tuple[PartChoice, ...]

Asked = tuple[str, OpScheme]
"""A unit's name and a scheme whose loss is asked for."""

VARIANTS = 3
"""Of one mode and width, so many are looked at; as many choices or fewer are not thinned out."""

CLEARLY_LESS = (
    0.9  # of the loss of all that costs less: what a dearer choice must bring to count
)

FLOAT_BITS = 32.0


def bits(scheme: OpScheme) -> float:
    """Bits of the coarsest tensor of a scheme: 32 in float."""
    if scheme.is_float:
        return FLOAT_BITS
    specs = (scheme.weight, scheme.input, scheme.output)
    coarsest = min(spec.bits for spec in specs if spec)
    return float(coarsest)


def offers(problem: Problem, kind: str) -> bool:
    """Return whether the sensitivity service says that it has a kind."""
    service = problem.sensitivity
    return isinstance(service, RecipeSensitivity) and kind in service.kinds


def resolved(problem: Problem, kind: str) -> str:
    """Return what to ask for: a service that cannot choose has no ``auto``."""
    can_choose = isinstance(problem.sensitivity, RecipeSensitivity)
    return "output_distance" if kind == "auto" and not can_choose else kind


def pair_losses(
    problem: Problem,
    kind: str,
    pairs: Sequence[tuple[Unit, OpScheme]],
    transforms: Transforms = (),
) -> list[float]:
    """Return one loss >= 0 for each (unit, scheme) after ``transforms``; 0 in float.

    Without a sensitivity service, or where neither this kind nor ``weight_error`` could be found
    out for a single pair (the service has told why), the noise power of rounding, 4^-bits, stands
    in, times the unit's parameters: it tells schemes apart, and among equal schemes the small units
    come first.
    """
    asked = [(unit.name, scheme) for unit, scheme in pairs if not scheme.is_float]
    found = _probed(problem, kind, asked, transforms)
    is_told = any(map(math.isfinite, found.values()))
    losses = []
    for unit, scheme in pairs:
        if scheme.is_float:
            losses.append(0.0)
        elif is_told:
            losses.append(found[unit.name, scheme])
        else:
            losses.append(_rounding_noise(unit, scheme))
    return losses


def _rounding_noise(unit: Unit, scheme: OpScheme) -> float:
    power: float = 4.0 ** -bits(scheme)
    return power * max(unit.parameters, 1)


def _probed(
    problem: Problem,
    kind: str,
    asked: Sequence[Asked],
    transforms: Transforms,
) -> dict[Asked, float]:
    """Return what the service says of (unit name, scheme): the kind, else the weight error."""
    service = problem.sensitivity
    if service is None or not asked:
        return {}
    if transforms and isinstance(service, RecipeSensitivity):
        service = service.under(transforms)
    found: dict[Asked, float] = {}
    for tried in dict.fromkeys((resolved(problem, kind), "weight_error")):
        losses = [float(loss) for loss in service(tried, asked)]
        found = dict(zip(asked, losses, strict=True))
        if any(map(math.isfinite, losses)):
            break
    return found


def listed_losses(
    problem: Problem,
    kind: str,
    listed: Sequence[Sequence[int]],
    transforms: Transforms = (),
) -> list[np.ndarray]:
    """Return for each tunable unit the losses of its listed choices, all asked for together."""
    units = problem.space.tunable
    pairs = []
    for unit, kept in zip(units, listed, strict=True):
        pairs += [(unit, unit.choices[index]) for index in kept]
    flat = np.array(pair_losses(problem, kind, pairs, transforms))
    ends = np.cumsum([len(kept) for kept in listed])
    return np.split(flat, ends[:-1])


def unit_losses(
    problem: Problem,
    kind: str,
    choice: Mapping[str, OpScheme],
    transforms: Transforms = (),
) -> dict[str, float]:
    """Return the loss of each tunable unit under its chosen scheme."""
    units = [u for u in problem.space.tunable if u.name in choice]
    pairs = [(u, choice[u.name]) for u in units]
    losses = pair_losses(problem, kind, pairs, transforms)
    return {u.name: loss for u, loss in zip(units, losses, strict=True)}


def shortlist(
    problem: Problem, costs: Sequence[np.ndarray], transforms: Transforms = ()
) -> list[list[int]]:
    """Return for each tunable unit the choices worth a run of the model, as indices in their order.

    Float is among them. A backend may offer dozens. Of one mode and width the first few in its
    order and the cheapest are looked at; of those the front of cost and weight error, which is
    cheap to tell, is kept, under budgets that of bytes and weight error too, and of each mode that
    is not on it the one of the least weight error.

    Args:
        problem: Gives the units and the weight errors.
        costs: The cost of each choice of each unit; infinite where it is out of the question.
        transforms: The transforms under which they are compared.
    """
    units = problem.space.tunable
    listed = [_candidates(unit, cost) for unit, cost in zip(units, costs, strict=True)]
    # Only where there are many candidates is their error asked for.
    crowded = [kept if len(kept) > VARIANTS else [] for kept in listed]
    errors = listed_losses(problem, "weight_error", crowded, transforms)
    for row, (unit, cost) in enumerate(zip(units, costs, strict=True)):
        if crowded[row]:
            lost = dict(zip(crowded[row], errors[row], strict=True))
            listed[row] = _thinned(unit, cost, lost, by_bytes=bool(problem.budgets))
        listed[row].append(len(unit.choices) - 1)
    return listed


def _candidates(unit: Unit, cost: np.ndarray) -> list[int]:
    """Return of each mode and width the first few choices and the cheapest, without float."""
    ways: dict[tuple[str, int], list[int]] = {}
    for index, scheme in enumerate(unit.choices[:-1]):
        if np.isfinite(cost[index]):
            ways.setdefault((scheme.mode, scheme.weight_bits), []).append(index)
    kept: set[int] = set()
    for found in ways.values():
        kept.update(found[:VARIANTS])
        # The cheapest is among them, so that whatever limit can be kept at all can be kept by what
        # is listed.
        kept.add(min(found, key=cost.__getitem__))
    return sorted(kept)


def _thinned(
    unit: Unit, cost: np.ndarray, lost: Mapping[int, float], *, by_bytes: bool
) -> list[int]:
    """Return the candidates that are worth a run.

    Args:
        unit: Theirs.
        cost: Of every choice of the unit.
        lost: Candidate -> its weight error.
        by_bytes: What is small counts beside what is cheap.
    """
    front = _front(cost, lost)
    if by_bytes:
        # What is hardly slower may be larger: under a limit of size the front of bytes counts too.
        sizes = [unit.weight_bytes(scheme) for scheme in unit.choices]
        front |= _front(sizes, lost)
    # How much a mode loses shows at the model's outputs alone: scales found at run time escape
    # outliers of other batches. So no mode is left out for its weight error.
    worth_it = set(front)
    on_front = {unit.choices[index].mode for index in front}
    from_worst = sorted(lost, key=lambda index: -lost[index])
    best_of = {unit.choices[index].mode: index for index in from_worst}
    for mode, index in best_of.items():
        if mode not in on_front:
            worth_it.add(index)
    return sorted(worth_it)


def _front(cost: Sequence[float] | np.ndarray, lost: Mapping[int, float]) -> set[int]:
    """Return what clearly loses less than all that costs less."""

    def from_cheapest(index: int) -> tuple[float, float, int]:
        return float(cost[index]), lost[index], index

    least = math.inf
    front = set()
    for index in sorted(lost, key=from_cheapest):
        if lost[index] < CLEARLY_LESS * least:
            least = lost[index]
            front.add(index)
    return front
