"""Which values hang together: between a rescale group's ends, and under one shared scale."""

from __future__ import annotations

from collections.abc import Mapping

from .graph import Group, ModelView


def values_between(view: ModelView, group: Group) -> frozenset[str]:
    """Return the values that a rescale group divides: those it states, or all on the way from its
    producer to its members."""
    if group.values:
        return frozenset((*group.values, group.value))
    reads: dict[str, set[str]] = {}
    for op in view.ops:
        for value in op.outputs:
            reads.setdefault(value, set()).update(op.inputs)
    producer = view.by_name.get(group.producer)
    ends = frozenset(producer.outputs) if producer else frozenset((group.value,))
    found = {group.value}
    for member in group.members:
        for value in view.by_name[member].inputs:
            found |= _way_back(value, ends, reads)
    return frozenset(found)


def _way_back(value: str, ends: frozenset[str], reads: Mapping[str, set[str]]) -> set[str]:
    """Return the values on paths from ``value`` back to one of ``ends``; none where no path meets
    one."""
    if value in ends:
        return {value}
    seen: set[str] = set()
    stack: list[tuple[str, tuple[str, ...]]] = [(value, (value,))]
    found: set[str] = set()
    while stack:
        at, path = stack.pop()
        for before in reads.get(at, ()):
            if before in ends:
                found |= {*path, before}
            elif before not in seen:
                seen.add(before)
                stack.append((before, (*path, before)))
    return found


def seers(view: ModelView, group: Group, value: str, values: frozenset[str]) -> frozenset[str]:
    """Return the ops that meet ``value`` divided: members that read it, those between, and its
    writer where there is a producer.

    Whoever else reads it is given the original value: the model's function stays.
    """
    found = {name for name in group.members if value in view.by_name[name].inputs}
    for op in view.ops:
        between = value in op.inputs and not values.isdisjoint(op.outputs)
        if between or (group.producer and value in op.outputs):
            found.add(op.name)
    return frozenset(found)


def shared_scales(view: ModelView) -> dict[str, tuple[str, ...]]:
    """Return, for each value whose scale is shared (``scale`` groups), all values that share it."""
    together: list[set[str]] = []
    for group in view.groups:
        if group.kind == "scale":
            values = {v for member in group.members for v in view.by_name[member].inputs}
            overlapping = [t for t in together if t & values]
            together = [t for t in together if not t & values] + [values.union(*overlapping)]
    return {value: tuple(sorted(values)) for values in together for value in values}
