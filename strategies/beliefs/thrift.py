"""Sensitivities at a price that they are worth: the cheapest way that still tells units apart."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from octavo.core.contract.strategy import Problem, RecipeSensitivity
from octavo.core.system.log import remark
from octavo.core.values.scheme import OpScheme
from octavo.core.values.space import Unit

from .losses import Transforms, listed_losses, offers, resolved

Listed = Sequence[Sequence[int]]
"""For each tunable unit, the choices that are asked for, as indices."""


def worthwhile_losses(
    problem: Problem, kind: str, listed: Listed, transforms: Transforms = ()
) -> list[np.ndarray]:
    """Return the losses of listed choices, in a way whose price they are worth.

    Where the kind that is asked for takes longer than the evaluations that it saves
    (:attr:`Problem.worth`), gradients take its place where the backend has them; else one scheme of
    each unit and mode is probed, and the others follow from it in proportion to their weight
    errors: within one unit these tell widths apart. It is told beforehand, in one line.

    Args:
        problem: Gives the space, the service and what it is worth.
        kind: Of sensitivity.
        listed: What is asked for.
        transforms: Under which.
    """
    kind = resolved(problem, kind)
    service = problem.sensitivity
    if not isinstance(service, RecipeSensitivity):
        return listed_losses(problem, kind, listed, transforms)
    price = _price(problem, service, kind, listed, transforms)
    worth = problem.worth() if price else None
    if worth is None or price <= worth:
        if price:
            _tell(kind, price, worth)
        return listed_losses(problem, kind, listed, transforms)
    few = _one_of_each_mode(problem.space.tunable, listed)
    ways = [(price, kind, listed)]
    ways.append((_price(problem, service, kind, few, transforms), kind, few))
    if offers(problem, "gradient"):
        gradient = _price(problem, service, "gradient", listed, transforms)
        ways.append((gradient, "gradient", listed))
    cheapest, taken, asked = min(ways, key=lambda way: way[0])
    _tell(taken, cheapest, worth, instead_of=price)
    found = listed_losses(problem, taken, asked, transforms)
    if asked is listed:
        return found
    return _in_proportion(problem, listed, few, found, transforms)


def _tell(
    kind: str, price: int, worth: float | None, instead_of: int | None = None
) -> None:
    """Say what is asked for, before it takes its time; where it takes long, for all to see."""
    told = f"sensitivities ({kind}): as long as {price} runs of a batch"
    if instead_of is not None and instead_of > price:
        told += f" instead of {instead_of}"
    is_dear = instead_of is not None and worth is not None
    if is_dear:
        told += f"; the evaluations that they save are as long as {worth:.0f}"
    remark(told, "tuning", logging.WARNING if is_dear else logging.INFO)


def _price(
    problem: Problem,
    service: RecipeSensitivity,
    kind: str,
    listed: Listed,
    transforms: Transforms,
) -> int:
    pairs = [
        (unit.name, unit.choices[index])
        for unit, kept in zip(problem.space.tunable, listed, strict=True)
        for index in kept
    ]
    return service.price(kind, pairs, transforms)


def _one_of_each_mode(units: Sequence[Unit], listed: Listed) -> list[list[int]]:
    """Return of each unit's listed choices one for each mode: the one of the middle width.

    The narrowest loses so much that it says little of the others, the widest next to nothing.
    """
    found = []
    for unit, kept in zip(units, listed, strict=True):
        of_mode: dict[str, list[int]] = {}
        for index in kept:
            of_mode.setdefault(unit.choices[index].mode, []).append(index)
        middle = []
        for indices in of_mode.values():
            by_width = sorted(indices, key=lambda i: _width(unit.choices[i]))
            middle.append(by_width[(len(by_width) - 1) // 2])
        found.append(sorted(middle))
    return found


def _width(scheme: OpScheme) -> tuple[int, str]:
    return scheme.weight_bits, str(scheme)


def _in_proportion(
    problem: Problem,
    listed: Listed,
    few: Listed,
    probed: Sequence[np.ndarray],
    transforms: Transforms,
) -> list[np.ndarray]:
    """Return the loss of every listed choice: what was probed of its mode, times the share of
    weight errors."""
    errors = listed_losses(problem, "weight_error", listed, transforms)
    found = []
    for unit, kept, chosen, losses, lost in zip(
        problem.space.tunable, listed, few, probed, errors, strict=True
    ):
        error = dict(zip(kept, lost, strict=True))
        loss = dict(zip(chosen, losses, strict=True))
        of_mode = {unit.choices[index].mode: index for index in chosen}
        row = []
        for index in kept:
            known = of_mode[unit.choices[index].mode]
            share = 1.0
            if index != known and 0 < error[known] < np.inf:
                share = error[index] / error[known]
            row.append(loss[known] * share)
        found.append(np.array(row))
    return found
