"""What the ledger says beside an adapter's lines: ops kept in float, and remarks on others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from octavo.core.calibration.statistics import Statistics
from octavo.core.calibration.visits import Met
from octavo.core.contract.adapter import Opened, OpParameters
from octavo.core.errors import SchemeError
from octavo.core.values.graph import UNREACHED, ModelView
from octavo.core.values.ledger import Applied
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import FLOAT, PartChoice, in_order
from octavo.core.values.sizes import repairs_of

Ledger = Mapping[str, Applied]
Remarks = Mapping[str, str]
"""Op name -> what its line of the ledger says besides."""


def with_kept(ledger: Ledger, recipe: Recipe, kept: Remarks) -> Ledger:
    """Return a ledger with the lines of ops that were asked for and stay float.

    Args:
        ledger: As the adapter wrote it.
        recipe: What was asked for.
        kept: Op name -> why it stays float.
    """
    lines = {
        name: Applied(recipe[name], FLOAT, "kernel", why) for name, why in kept.items()
    }
    return {**ledger, **lines}


def remarked(ledger: Ledger, remarks: Iterable[Remarks]) -> Ledger:
    """Return a ledger whose lines say more; remarks on ops without a line are left out."""
    lines = dict(ledger)
    for said in remarks:
        for name, why in said.items():
            if name in lines:
                reasons = filter(None, (lines[name].reason, why))
                lines[name] = replace(lines[name], reason="; ".join(reasons))
    return lines


def unreached(view: ModelView, recipe: Recipe, statistics: Statistics) -> Remarks:
    """Return op -> why it has no range.

    These are static ops that no calibration batch came to: a branch that none took.
    """
    found: dict[str, str] = {}
    for name in recipe:
        op = view.by_name.get(name)
        scheme = recipe[name]
        if op is None or scheme.mode != "static":
            continue
        wanted = (*op.inputs, *(op.outputs if scheme.output is not None else ()))
        unseen = [value for value in wanted if value not in statistics.seen]
        if unseen:
            found[name] = (
                f"{UNREACHED}: none of {statistics.batches} batches computed {unseen[0]!r}; "
                "it stays float"
            )
    return found


def reached_by_some(
    view: ModelView, recipe: Recipe, statistics: Statistics, met: Met
) -> Remarks:
    """Return static op -> in how many calibration batches it was called, where that is not all."""
    found: dict[str, str] = {}
    for name in recipe:
        if recipe[name].mode != "static":
            continue
        watched = [v for v in view.by_name[name].inputs if v in statistics.values]
        times = min((met.batches.get(value, 0) for value in watched), default=met.all)
        if times < met.all:
            found[name] = f"called in {times} of {met.all} calibration batches"
    return found


def refuse_repairs(opened: Opened, recipe: Recipe) -> None:
    """Refuse low-rank repairs that the backend cannot carry out, before anything is quantized.

    Raises:
        SchemeError: It names the op and the reason.
    """
    for name, scheme in recipe.schemes.items():
        _, why = opened.capability.repairable(opened.view.by_name[name], scheme)
        if why:
            raise SchemeError(f"op {name!r}: {why}; leave low_rank out of its scheme")


def repaired(parameters: Mapping[str, OpParameters]) -> Remarks:
    """Return op -> rank and bytes of its weight's low-rank repair, where it has one."""
    found: dict[str, str] = {}
    for name, own in parameters.items():
        repair = own.weight.repair if own.weight is not None else None
        if repair is not None:
            found[name] = (
                f"low-rank repair of rank {repair.rank}, {repair.nbytes:,} bytes"
            )
    return found


def without_repair(opened: Opened, recipe: Recipe) -> Remarks:
    """Return op -> why its weight has no low-rank repair, where those of others have one."""
    repairs = [r for scheme in recipe.schemes.values() for r in repairs_of(scheme)]
    found: dict[str, str] = {}
    for name, scheme in recipe.schemes.items() if repairs else ():
        if scheme.weight is None or repairs_of(scheme):
            continue
        asked = scheme.variant(refined_by=(*scheme.refined_by, repairs[0]))
        _, why = opened.capability.repairable(opened.view.by_name[name], asked)
        if why:
            found[name] = why
    return found


def orders_of_transforms(steps: Mapping[str, tuple[PartChoice, ...]]) -> Remarks:
    """Return op -> the transforms that it was changed by, in their order.

    Args:
        steps: Of a recipe of several transforms: op -> those that changed it.
    """
    return {op: f"after {in_order(parts)}" for op, parts in steps.items()}


def second_copies(
    view: ModelView, recipe: Recipe, parameters: Mapping[str, OpParameters]
) -> Remarks:
    """Return op -> that its codes are a further copy of a weight that another op has otherwise."""
    found: dict[str, str] = {}
    for name in recipe:
        weight = view.by_name[name].weight
        own = parameters[name].weight if name in parameters else None
        if weight is None or own is None:
            continue
        for other in weight.shared_with:
            its = parameters[other].weight if other in parameters else None
            if its is own:
                continue
            form = "stays float" if its is None else f"takes [{recipe[other]}]"
            found[name] = (
                f"its weight is tied to that of {other!r}, which {form}: "
                f"a copy of its own, {own.nbytes:,} bytes"
            )
    return found
