"""Where the time of a call goes and what the file holds, by op."""

from __future__ import annotations

import time
from collections.abc import Collection

from octavo.adapters.numpy.graph import Array, Graph, Node
from octavo.core.contract.attribution import Step, by_op, owners_of
from octavo.core.values.layers import REST

from .program import Program


def profile(
    program: Program, arrays: list[Array], known: Collection[str], seconds: float
) -> dict[str, float]:
    """Return op -> milliseconds of a call.

    Args:
        program: What runs.
        arrays: Its inputs.
        known: Names of the nodes that the model has; others serve one of them.
        seconds: About how long the calls may take together.
    """
    owner = _owner_by_name(program.graph, known)
    calls: list[dict[str, float]] = []
    whole: list[float] = []

    def note(node: Node, taken: float) -> None:
        op = owner[node.name]
        calls[-1][op] = calls[-1].get(op, 0.0) + taken * 1e3

    timed = program.timed(note)
    program.run(arrays)
    end = time.perf_counter() + seconds
    while not calls or time.perf_counter() < end:
        calls.append({})
        start = time.perf_counter()
        timed.run(arrays)
        whole.append((time.perf_counter() - start) * 1e3)
    return by_op(calls, whole)


def bytes_by_op(graph: Graph, known: Collection[str]) -> dict[str, int]:
    """Return op -> bytes of its arrays; an array that several read is the first one's."""
    owner = _owner_by_name(graph, known)
    found: dict[str, int] = {}
    left = dict(graph.initializers)
    for node in graph.nodes:
        op = owner[node.name]
        for value in graph.reads(node):
            array = left.pop(value, None)
            if array is not None:
                found[op] = found.get(op, 0) + array.nbytes
    found[REST] = found.get(REST, 0) + sum(array.nbytes for array in left.values())
    return found


def _owner_by_name(graph: Graph, known: Collection[str]) -> dict[str, str]:
    steps = []
    for node in graph.nodes:
        owner = node.name if node.name in known else None
        reads = tuple(graph.reads(node))
        steps.append(Step(owner, reads, node.outputs, node.op == "Cast"))
    found = zip(graph.nodes, owners_of(steps), strict=True)
    return {node.name: op for node, op in found}
