"""Which values hang together: between a rescale group's ends, and under one shared scale."""

from __future__ import annotations

from collections.abc import Mapping

from .graph import Group, ModelView


def values_between(view: ModelView, group: Group) -> frozenset[str]:
    """Return the values that a rescale group divides: those it states, or all on the way from its
    producer to its members."""
    if group.values:
        return frozenset((*group.values, group.value))
    producer = view.by_name.get(group.producer)
    ends = {group.value}
    if producer is not None:
        ends = set(producer.outputs)
    made_of = _made_of(view)
    found = {group.value}
    for member in group.members:
        op = view.by_name[member]
        for value in op.inputs:
            found |= _way_back(value, ends, made_of)
    return frozenset(found)


def _made_of(view: ModelView) -> dict[str, set[str]]:
    """Return, for each value that an op writes, the values that the op reads."""
    found: dict[str, set[str]] = {}
    for op in view.ops:
        for value in op.outputs:
            sources = found.setdefault(value, set())
            sources.update(op.inputs)
    return found


def _way_back(value: str, ends: set[str], made_of: Mapping[str, set[str]]) -> set[str]:
    """Return the values on paths from ``value`` back to one of ``ends``; none where no path meets
    one."""
    if value in ends:
        return {value}
    seen: set[str] = set()
    paths: list[tuple[str, ...]] = [(value,)]
    found: set[str] = set()
    while paths:
        path = paths.pop()
        for before in made_of.get(path[-1], ()):
            longer = (*path, before)
            if before in ends:
                found.update(longer)
            elif before not in seen:
                seen.add(before)
                paths.append(longer)
    return found


def seers(
    view: ModelView, group: Group, value: str, values: frozenset[str]
) -> frozenset[str]:
    """Return the ops that meet ``value`` divided: members that read it, those between, and its
    writer where there is a producer.

    Whoever else reads it is given the original value: the model's function stays.
    """
    found = {name for name in group.members if value in view.by_name[name].inputs}
    for op in view.ops:
        is_between = value in op.inputs and not values.isdisjoint(op.outputs)
        is_writer = bool(group.producer) and value in op.outputs
        if is_between or is_writer:
            found.add(op.name)
    return frozenset(found)


def scale_sharers(view: ModelView) -> dict[str, str]:
    """Return, for each value whose scale is shared, the op for whose sake it is: a member of a
    ``scale`` group that reads it."""
    found: dict[str, str] = {}
    for group in view.groups:
        for member in group.members if group.kind == "scale" else ():
            for value in view.by_name[member].inputs:
                found.setdefault(value, member)
    return found


def shared_scales(view: ModelView) -> dict[str, tuple[str, ...]]:
    """Return, for each value whose scale is shared (``scale`` groups), all values that share it."""
    together: list[set[str]] = []
    for group in view.groups:
        if group.kind != "scale":
            continue
        values: set[str] = set()
        for member in group.members:
            values.update(view.by_name[member].inputs)
        # Groups that have a value in common are one.
        apart = [other for other in together if other.isdisjoint(values)]
        overlapping = [other for other in together if not other.isdisjoint(values)]
        together = [*apart, values.union(*overlapping)]
    found: dict[str, tuple[str, ...]] = {}
    for values in together:
        shared = tuple(sorted(values))
        for value in shared:
            found[value] = shared
    return found
