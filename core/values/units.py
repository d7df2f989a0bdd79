"""Which ops decide together: the units of a tuning space."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from .graph import ModelView, Op, Weight
from .scheme import FLOAT, OpScheme
from .space import Unit, stored_form

Choices = Mapping[str, tuple[OpScheme, ...]]
"""Op name -> the schemes that it may take, float last."""


def find_units(view: ModelView, choices: Choices) -> tuple[tuple[Unit, ...], tuple[str, ...]]:
    """Return the units of a space in execution order, and what a reader must know of tied weights.

    Ops whose weight is one tensor decide together, so that it is quantized and stored once. An
    embedding has no product whose input
    could be quantized: it takes the weight-only form of what the tied layer takes, and that layer's
    algorithm. Where nothing is left that all can take (a rule keeps one of them in float), each
    decides for itself, and a quantized one is a second copy.
    """
    leader: dict[str, Unit] = {}
    remarks: list[str] = []
    for group in view.groups:
        if group.kind != "scheme" or any(m in leader for m in group.members):
            continue
        ops = [op for op in view.ops if op.name in group.members]
        tied = _is_tied(ops)
        if not tied and len({op.type for op in ops}) > 1:
            continue
        unit = _unit(ops, choices)
        if tied:
            names = ", ".join(repr(op.name) for op in ops)
            if not unit.tunable and any(len(choices[op.name]) > 1 for op in ops):
                remarks.append(
                    f"{names} share one weight and have no quantized scheme in common: each "
                    "decides alone, in a copy of its own"
                )
                continue
            if unit.tunable:
                remarks.append(
                    f"{names} share one weight: they decide together, among the schemes that all "
                    "of them can take"
                )
        leader.update(dict.fromkeys(unit.ops, unit))
    return tuple(_in_order(view, choices, leader)), tuple(remarks)


def _is_tied(ops: Sequence[Op]) -> bool:
    """True if the ops have one weight, and its output channels lie along one axis for
    all of them."""
    weights = {
        (op.weight.name, op.weight.channel_axis, op.further) if op.weight else None for op in ops
    }
    return len(weights) == 1 and None not in weights


def _in_order(view: ModelView, choices: Choices, leader: Mapping[str, Unit]) -> Iterator[Unit]:
    for op in view.ops:
        unit = leader.get(op.name) or _unit([op], choices)
        if op.name == unit.name:
            yield unit


def _unit(ops: Sequence[Op], choices: Choices) -> Unit:
    multiplies = [op for op in ops if op.type != "embedding"] or list(ops)
    lookups = [op for op in ops if op not in multiplies]
    first = multiplies[0]
    shared = tuple(
        s
        for s in choices[first.name]
        if all(s in choices[op.name] for op in multiplies)
        and all(_stores(s, choices[op.name]) for op in lookups)
    )
    channels = sum(
        sum(w.shape[w.channel_axis] if w.shape else 1 for w in o.weights) or 1 for o in ops
    )
    weights = {w.name: w for o in ops for w in o.weights}
    matrices = tuple(_matrix_shape(w) for w in weights.values())
    if (
        len(weights) == 1 and first.weight and first.weight.shape
    ):  # tied: one weight has one set of scales
        channels = first.weight.shape[first.weight.channel_axis]
    names = tuple(op.name for op in (*multiplies, *lookups))
    return Unit(
        first.name,
        first.type,
        names,
        shared,
        block_of(first.name),
        sum(w.size for w in weights.values()),
        channels,
        sum(o.macs or 0 for o in ops),
        tuple(op.name for op in lookups),
        matrices,
    )


def _matrix_shape(weight: Weight) -> tuple[int, int]:
    rows = weight.shape[weight.channel_axis] if weight.shape else 1
    return rows, weight.size // max(1, rows)


def _stores(scheme: OpScheme, own: Sequence[OpScheme]) -> bool:
    """True if an op that looks rows up may take the weight-only form of a scheme, whatever
    algorithm rounds."""
    form = stored_form(scheme)
    return scheme == FLOAT or any((s.mode, s.weight) == (form.mode, form.weight) for s in own)


def block_of(name: str) -> str:
    """Return the repeated block that a name sits in: everything up to its first number
    (``encoder.layer.3``)."""
    found = re.match(r"(.*?(?:^|[._/])\D*?\d+)(?=[._/]|$)", name)
    return found[1] if found else name
