"""Places of a graph where few values pass: where it can be cut in two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnx_ir import Model, Node, Value

from octavo.adapters.onnx.prepare.patterns import name_of
from octavo.adapters.onnx.prepare.scopes import has_bodies

CUTS = 16
"""Places at most."""

NARROW = 4
"""Values that may pass a place."""


@dataclass(frozen=True)
class Cut:
    """A place in the order of nodes.

    Attributes:
        at: Number of nodes before it.
        passing: Names of the values that are computed before it and read after it.
    """

    at: int
    passing: tuple[str, ...]

    @property
    def width(self) -> int:
        """How many values pass."""
        return len(self.passing)


def cuts(model: Model) -> list[Cut]:
    """Return up to :data:`CUTS` places where the fewest values pass, spread over the graph.

    None for graphs with subgraphs.
    """
    nodes = list(model.graph)
    total = len(nodes)
    # Nodes are told apart by their names.
    names = {node.name for node in nodes}
    if len(names) < total or model.functions:
        return []
    if any(has_bodies(node) for node in nodes):
        return []
    found = _narrow_places(nodes)
    # The middle says how narrow a place must be: the ends may be narrower than any place between.
    first = total // 4
    last = 3 * total // 4
    widths = [cut.width for cut in found if first <= cut.at <= last]
    least = min(widths, default=0)
    stretches: dict[int, Cut] = {}
    for cut in found:
        if cut.width <= least:
            # Of each stretch the last: the further on, the more is recalled.
            stretch = cut.at * CUTS // total
            stretches[stretch] = cut
    return list(stretches.values())


def _narrow_places(nodes: Sequence[Node]) -> list[Cut]:
    """Return every place that few values pass, all of which can be inputs of a model."""
    last_reads = _last_reads(nodes)
    leaving: dict[int, list[Value]] = {}
    for value, index in last_reads.items():
        leaving.setdefault(index, []).append(value)
    alive: dict[Value, None] = {}
    found: list[Cut] = []
    for index, node in enumerate(nodes[:-1]):
        for value in node.outputs:
            if last_reads[value] > index:
                alive[value] = None
        for value in leaving.get(index, ()):
            alive.pop(value, None)
        if not 0 < len(alive) <= NARROW:
            continue
        if all(map(_can_be_an_input, alive)):
            passing = tuple(map(name_of, alive))
            cut = Cut(index + 1, passing)
            found.append(cut)
    return found


def _last_reads(nodes: Sequence[Node]) -> dict[Value, int]:
    """Return value -> index of its last reader; the end for outputs, -1 where nobody reads it."""
    place = {node: index for index, node in enumerate(nodes)}
    found: dict[Value, int] = {}
    the_end = len(nodes)
    for node in nodes:
        for value in node.outputs:
            if value.is_graph_output():
                found[value] = the_end
                continue
            readers = [place[user] for user, _ in value.uses()]
            found[value] = max(readers, default=-1)
    return found


def _can_be_an_input(value: Value) -> bool:
    if not value.name or value.type is None:
        return False
    return not value.is_graph_output()
