"""Every floating constant that the outputs depend on: what coverage is counted against."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from octavo.adapters.numpy.graph import Graph, Node
from octavo.core.values.coverage import counts
from octavo.core.values.graph import HeldWeight

_PRODUCTS = frozenset(
    {
        "Gemm",
        "MatMul",
        "Conv",
        "ConvTranspose",
        "Gather",
        "LSTM",
        "GRU",
        "RNN",
        "Einsum",
    }
)
"""Operators that multiply by a constant, or look rows up in one."""

_BIAS = {"Gemm": 2, "Conv": 2, "ConvTranspose": 2, "LSTM": 3, "GRU": 3, "RNN": 3}
"""Operator -> the input that is added to a product, and is no weight of one."""


class _Read(NamedTuple):
    """A constant, and who reads it.

    Attributes:
        place: The bodies that it stands in, ``node/`` for each; '' outside.
        owner: The graph that holds it.
        node: Who reads it; None for an output of the model.
        name: Its name.
    """

    place: str
    owner: Graph
    node: Node | None
    name: str


def census(graph: Graph) -> tuple[HeldWeight, ...]:
    """Return the floating constants of two or more dimensions that the outputs depend on, once.

    Args:
        graph: As :func:`.prepare.rewrites.optimised` returns it.

    Returns:
        In execution order, each with the reason why no integer kernel takes it where no op claims
        it. What a body holds is named ``node/name``.
    """
    found: dict[str, HeldWeight] = {}
    for read in _reads(graph, ""):
        for weight in _counted(read):
            name = f"{read.place}{weight.name}"
            found.setdefault(name, replace(weight, name=name, reason=_why_float(read)))
    return tuple(found.values())


def _counted(read: _Read) -> tuple[HeldWeight, ...]:
    """Return the weights that a constant stands for: itself, or what it was folded from.

    What was computed from no weight (a mask, a table of positions) is one only where a product
    reads it.
    """
    array = read.owner.initializers[read.name]
    origins = read.owner.origins.get(read.name)
    own = HeldWeight(read.name, tuple(array.shape), str(array.dtype))
    if origins or not counts(own.shape, own.dtype):
        return origins or ()
    is_multiplied = read.node is not None and read.node.op in _PRODUCTS
    return (own,) if origins is None or is_multiplied else ()


def _reads(graph: Graph, place: str) -> Iterator[_Read]:
    """Yield the constants that a graph's outputs depend on, in execution order."""
    for node in _needed(graph):
        for name in dict.fromkeys(graph.reads(node)):
            if name in graph.initializers:
                yield _Read(place, graph, node, name)
        for body in node.bodies():
            yield from _reads(body, f"{place}{node.name}/")
    for name in graph.outputs:
        if name in graph.initializers:
            yield _Read(place, graph, None, name)


def _needed(graph: Graph) -> list[Node]:
    """Return the nodes whose values reach an output, in execution order."""
    wanted = set(graph.outputs)
    needed = []
    for node in reversed(graph.nodes):
        if wanted.intersection(node.outputs):
            needed.append(node)
            wanted.update(graph.reads(node))
    return needed[::-1]


def _why_float(read: _Read) -> str:
    """Return why no integer kernel takes a constant."""
    node = read.node
    if node is None:
        return "it is an output of the model as it is"
    bias = _BIAS.get(node.op)
    if bias is not None and node.input(bias) == read.name:
        return "a bias stays float"
    if read.place:
        return f"it stands in the body of {read.place.rstrip('/')!r}, which stays float"
    return f"the NumPy backend has no integer kernel for {node.op} with a constant"
