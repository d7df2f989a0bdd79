"""How fast schemes are beside float.

What is known of them, and what a small sample shows when somebody asks.

What is known (``Offer.slower``) is a table, the same in every process: so it may shape what a
strategy tries. What is measured depends on the machine and its mood. It is told and decides
nothing, for two runs of the same search must find the same recipes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cache

from octavo.core.contract.adapter import Adapter, Batch, Candidate, Opened
from octavo.core.contract.parts import AdapterPart
from octavo.core.contract.plugins import PluginHost
from octavo.core.errors import OctavoError
from octavo.core.quantizing.realize import Realizer
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import FLOAT, OpScheme
from octavo.core.values.space import TuningSpace, Unit

from .rules import Rule, names_schemes

Why = Callable[[str, OpScheme], str]
"""Op type and scheme -> why it is slower than float; '' where it is not."""

CLEARLY = 0.9
"""Share of float's speed below which a sample is called slower."""

SECONDS = 0.05
"""Of timing for each scheme: enough to tell a half or a fifth, which is what is wanted."""

_LEAST = 8
"""Turns that are taken however long a call takes; both halves of them must agree."""


def timed(
    candidate: Candidate, reference: Candidate, batch: Batch
) -> tuple[float, float]:
    """Return the speed of a candidate as a share of the float model's, in two halves of one run.

    The two take turns, call by call, and the shortest calls are compared: what else the machine
    does can only take time.
    """
    for model in (reference, candidate):
        model.run(batch)
    base: list[float] = []
    own: list[float] = []
    end = time.perf_counter() + SECONDS
    while len(own) < _LEAST or time.perf_counter() < end:
        base.append(_call_seconds(reference, batch))
        own.append(_call_seconds(candidate, batch))
    half = len(own) // 2
    early = min(base[:half]) / min(own[:half])
    late = min(base[half:]) / min(own[half:])
    return early, late


def _call_seconds(model: Candidate, batch: Batch) -> float:
    start = time.perf_counter()
    model.run(batch)
    return time.perf_counter() - start


def remark(speed: float | None) -> str:
    """Say that a measured share of float's speed is slower; '' where it is not clearly so."""
    if speed is None or speed >= CLEARLY:
        return ""
    return f"{speed:.2f} of float's speed, measured here on a small sample"


@cache
def measured(card: AdapterPart[Adapter], kind: str, scheme: OpScheme) -> float | None:
    """Time an op type under a scheme beside float, once in a process.

    Args:
        card: The backend, which is asked for a sample model.
        kind: Op type.
        scheme: One that the backend offers for it.

    Returns:
        Its speed as a share of float's, the better of two halves; None where the backend has no
        sample, or the sample cannot take the scheme.
    """
    adapter = card.build()
    sample = adapter.sample(kind)
    if sample is None:
        return None
    model, batch = sample
    try:
        session = adapter.open(model, batch)
        opened = Opened(card.name, session, session.describe(), session.capability())
        candidate = _sample_candidate(opened, kind, scheme, batch)
    except (OctavoError, StopIteration):
        # A width or group that the sample does not have: nothing is claimed.
        return None
    return max(timed(candidate, session.reference(), batch))


def _sample_candidate(
    opened: Opened, kind: str, scheme: OpScheme, batch: Batch
) -> Candidate:
    """Return a sample model whose first op of a type takes a scheme.

    Raises:
        StopIteration: If it has no op of that type.
    """
    op = next(op for op in opened.view.ops if op.type == kind)
    choices = (scheme, FLOAT)
    unit = Unit(op.name, kind, (op.name,), choices, parameters=op.parameters)
    space = TuningSpace(opened.name, (unit,))
    realizer = Realizer(opened, space, PluginHost(third_party=False))
    realizer.calibrate((batch,))
    return realizer.candidate(Recipe({op.name: scheme}, backend=opened.name))


def slower(
    opened: Opened, card: AdapterPart[Adapter], recipe: Recipe
) -> tuple[str, ...]:
    """Return what of a recipe is known, or measured here, to be slower than float.

    A line for each op type and scheme.
    """

    def why(kind: str, scheme: OpScheme) -> str:
        known = opened.capability.slower(kind, scheme)
        if known or opened.capability.device != "cpu":
            return known
        return remark(measured(card, kind, scheme))

    return _told(opened, recipe, why)


def known_slower(opened: Opened, recipe: Recipe) -> tuple[str, ...]:
    """Return what of a recipe is known to be slower than float: a line for each type and scheme."""
    return _told(opened, recipe, opened.capability.slower)


def _told(opened: Opened, recipe: Recipe, why: Why) -> tuple[str, ...]:
    found: dict[tuple[str, OpScheme], list[str]] = {}
    for op in opened.view.ops:
        scheme = recipe.schemes.get(op.name)
        if scheme is not None and not scheme.is_float:
            found.setdefault((op.type, scheme), []).append(op.name)
    lines = []
    for (kind, scheme), names in found.items():
        reason = why(kind, scheme)
        if reason:
            which = f"({len(names)} ops, {names[0]} first)"
            what = f"{kind} as [{scheme}] {which}"
            lines.append(f"slower than float: {what}: {reason}")
    return tuple(lines)


def worth_trying(
    opened: Opened, space: TuningSpace, rules: Iterable[Rule]
) -> tuple[TuningSpace, tuple[str, ...]]:
    """Leave out of a space what is known to be slower than float.

    For a search whose first objective is speed. The table alone decides, never a clock. What a rule
    names by its mode, weight or input stays: the user asked for it.

    Returns:
        The space, and what was left out and why.
    """
    rules = tuple(rules)
    ops = opened.view.by_name
    units: list[Unit] = []
    left_out: dict[str, None] = {}
    for unit in space.units:
        if any(names_schemes(ops[name], opened, rules) for name in unit.ops):
            units.append(unit)
            continue
        kept, slow = _without_slower(opened, unit, ops[unit.ops[0]].type)
        units.append(replace(unit, choices=kept))
        left_out |= dict.fromkeys(slow)
    notes = [f"not tried, for it is slower than float: {what}" for what in left_out]
    return replace(space, units=tuple(units)), tuple(notes)


def _without_slower(
    opened: Opened, unit: Unit, kind: str
) -> tuple[tuple[OpScheme, ...], list[str]]:
    """Return a unit's choices that are not known to be slower than float, and why others are."""
    kept = []
    slow = []
    for scheme in unit.choices:
        reason = "" if scheme.is_float else opened.capability.slower(kind, scheme)
        if reason:
            slow.append(f"{unit.type} as {scheme.mode}: {reason}")
        else:
            kept.append(scheme)
    return tuple(kept), slow


def is_fast_first(objectives: Mapping[str, object]) -> bool:
    """Return whether speed is what is asked for first."""
    return next(iter(objectives), "") in ("latency", "throughput")
