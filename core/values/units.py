"""Which ops decide together: the units of a tuning space."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from .graph import ModelView, Op, Weight
from .scheme import FLOAT, OpScheme
from .sizes import float_width
from .space import Unit, stored_form

Choices = Mapping[str, tuple[OpScheme, ...]]
"""Op name -> the schemes that it may take, float last."""


def find_units(
    view: ModelView, choices: Choices
) -> tuple[tuple[Unit, ...], tuple[str, ...]]:
    """Return the units of a space in execution order, and what a reader must know of tied weights.

    Ops whose weight is one tensor decide together, so that it is quantized and stored once. An
    embedding has no product whose input could be quantized: it takes the weight-only form of what
    the tied layer takes, and that layer's algorithm. Where nothing is left that all can take (a
    rule keeps one of them in float), each decides for itself, and a quantized one is a second copy.
    """
    unit_of: dict[str, Unit] = {}
    remarks: list[str] = []
    for group in view.groups:
        is_taken = any(member in unit_of for member in group.members)
        if group.kind != "scheme" or is_taken:
            continue
        ops = [op for op in view.ops if op.name in group.members]
        tied = _is_tied(ops)
        types = {op.type for op in ops}
        if not tied and len(types) > 1:
            continue
        unit = _unit(ops, choices)
        has_choices = any(len(choices[op.name]) > 1 for op in ops)
        if tied and has_choices:
            remarks.append(_remark(ops, together=unit.tunable))
            if not unit.tunable:
                continue
        for name in unit.ops:
            unit_of[name] = unit
    units = _in_order(view, choices, unit_of)
    return tuple(units), tuple(remarks)


def _remark(ops: Sequence[Op], *, together: bool) -> str:
    names = ", ".join(repr(op.name) for op in ops)
    if together:
        return (
            f"{names} share one weight: they decide together, among the schemes that all of them "
            "can take"
        )
    return (
        f"{names} share one weight and have no quantized scheme in common: each decides alone, in "
        "a copy of its own"
    )


def _is_tied(ops: Sequence[Op]) -> bool:
    """True if the ops have one weight, and its output channels lie along one axis for
    all of them."""
    first = ops[0]
    if first.weight is None:
        return False
    for op in ops:
        if op.weight is None or op.further != first.further:
            return False
        if op.weight.name != first.weight.name:
            return False
        if op.weight.channel_axis != first.weight.channel_axis:
            return False
    return True


def _in_order(
    view: ModelView, choices: Choices, unit_of: Mapping[str, Unit]
) -> Iterator[Unit]:
    for op in view.ops:
        unit = unit_of.get(op.name) or _unit([op], choices)
        # A unit stands where its first op stands.
        if op.name == unit.name:
            yield unit


def _unit(ops: Sequence[Op], choices: Choices) -> Unit:
    multiplies = [op for op in ops if op.type != "embedding"] or list(ops)
    lookups = [op for op in ops if op not in multiplies]
    first = multiplies[0]
    offered = choices[first.name]
    shared = [s for s in offered if _all_take(s, multiplies, lookups, choices)]
    weights = {weight.name: weight for op in ops for weight in op.weights}
    matrices = [_matrix_shape(weight) for weight in weights.values()]
    parameters = sum(weight.size for weight in weights.values())
    held = sum(weight.size * float_width(weight.dtype) for weight in weights.values())
    return Unit(
        first.name,
        first.type,
        tuple(op.name for op in (*multiplies, *lookups)),
        tuple(shared),
        block_of(first.name),
        parameters=parameters,
        channels=_channels(ops, first, len(weights)),
        macs=sum(op.macs or 0 for op in ops),
        lookups=tuple(op.name for op in lookups),
        matrices=tuple(matrices),
        float_width=held / parameters if parameters else 4.0,
    )


def _all_take(
    scheme: OpScheme, multiplies: Sequence[Op], lookups: Sequence[Op], choices: Choices
) -> bool:
    for op in multiplies:
        if scheme not in choices[op.name]:
            return False
    return all(_stores(scheme, choices[op.name]) for op in lookups)


def _channels(ops: Sequence[Op], first: Op, distinct_weights: int) -> int:
    """Return how many scales a per-channel weight needs, of all ops together."""
    if distinct_weights == 1 and first.weight and first.weight.shape:
        # Tied: one weight has one set of scales.
        return _rows(first.weight)
    channels = 0
    for op in ops:
        own = sum(_rows(weight) for weight in op.weights)
        channels += own or 1
    return channels


def _rows(weight: Weight) -> int:
    return weight.shape[weight.channel_axis] if weight.shape else 1


def _matrix_shape(weight: Weight) -> tuple[int, int]:
    rows = _rows(weight)
    return rows, weight.size // max(1, rows)


def _stores(scheme: OpScheme, own: Sequence[OpScheme]) -> bool:
    """True if an op that looks rows up may take the weight-only form of a scheme, whatever
    algorithm rounds."""
    if scheme == FLOAT:
        return True
    form = stored_form(scheme)
    return any(s.mode == form.mode and s.weight == form.weight for s in own)


def block_of(name: str) -> str:
    """Return the repeated block that a name sits in: everything up to its first number
    (``encoder.layer.3``)."""
    # The shortest beginning whose last step, after a dot, slash or underscore, ends in digits.
    found = re.match(r"(.*?(?:^|[._/])\D*?\d+)(?=[._/]|$)", name)
    return found[1] if found else name
