"""The weights of a graph, counted in its constants: what stands in bodies of If, Loop and Scan included."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from octavo.adapters.numpy.graph import Graph, Node
from octavo.core.values.coverage import counts
from octavo.core.values.graph import HeldWeight

_PRODUCTS = frozenset(
    {"Gemm", "MatMul", "Conv", "ConvTranspose", "Gather", "LSTM", "GRU", "RNN", "Einsum"}
)
"""Operators that multiply by a constant, or look rows up in one."""

_BIAS = {"Gemm": 2, "Conv": 2, "ConvTranspose": 2, "LSTM": 3, "GRU": 3, "RNN": 3}
"""Operator -> the input that is added to a product, and is no weight of one."""


def census(graph: Graph) -> tuple[HeldWeight, ...]:
    """Return every floating constant of two or more dimensions that the outputs depend on, once.

    Args:
        graph: After :func:`.passes.optimised`.

    Returns:
        In execution order, each with the reason why no integer kernel takes it where no op claims it. What a body holds
        is named ``node/name``.
    """
    found: dict[str, HeldWeight] = {}
    for place, owner, node, name in _reads(graph, ""):
        for weight in _counted(owner, node, name):
            key = f"{place}{weight.name}"
            found.setdefault(key, replace(weight, name=key, reason=_reason(place, node, name)))
    return tuple(found.values())


def _counted(owner: Graph, node: Node | None, name: str) -> tuple[HeldWeight, ...]:
    """Return the weights that a constant stands for: itself, or what it was folded from.

    What was computed from no weight (a mask, a table of positions) is one only where a product reads it.
    """
    array, known = owner.initializers[name], owner.origins.get(name)
    own = HeldWeight(name, tuple(array.shape), str(array.dtype))
    if known or not counts(own.shape, own.dtype):
        return known or ()
    return (own,) if known is None or (node is not None and node.op in _PRODUCTS) else ()


def _reads(graph: Graph, place: str) -> Iterator[tuple[str, Graph, Node | None, str]]:
    """Yield (place, the graph that holds it, who reads it, name) for the constants that a graph's outputs depend on."""
    for node in _needed(graph):
        for name in dict.fromkeys(graph.reads(node)):
            if name in graph.initializers:
                yield place, graph, node, name
        for attribute in node.attributes.values():
            if isinstance(attribute, Graph):
                yield from _reads(attribute, f"{place}{node.name}/")
    for name in graph.outputs:
        if name in graph.initializers:
            yield place, graph, None, name


def _needed(graph: Graph) -> list[Node]:
    """Return the nodes whose values reach an output, in execution order."""
    wanted = set(graph.outputs)
    needed = []
    for node in reversed(graph.nodes):
        if wanted.intersection(node.outputs):
            needed.append(node)
            wanted.update(graph.reads(node))
    return needed[::-1]


def _reason(place: str, node: Node | None, name: str) -> str:
    if node is None:
        return "it is an output of the model as it is"
    bias = _BIAS.get(node.op)
    if bias is not None and len(node.inputs) > bias and node.inputs[bias] == name:
        return "a bias stays float"
    if place:
        return f"it stands in the body of {place.rstrip('/')!r}, which stays float"
    return f"the NumPy backend has no integer kernel for {node.op} with a constant"
