"""The weights of a model, counted in its tensors.

Initializers and constants that its outputs depend on, those that bodies read included.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from onnx_ir import Graph, Node, Value

from octavo.adapters.onnx.prepare.patterns import input_at
from octavo.adapters.onnx.prepare.provenance import held, sources
from octavo.adapters.onnx.prepare.scopes import bodies
from octavo.core.values.graph import HeldWeight

_PRODUCTS = frozenset(
    {
        "MatMul",
        "Gemm",
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


def census(graph: Graph) -> tuple[HeldWeight, ...]:
    """Return every floating constant of two or more dimensions that the outputs depend on, once.

    Args:
        graph: A prepared graph, whose Constant nodes are initializers.

    Returns:
        In execution order, each with the reason why no integer kernel takes it where no op claims
        it.
    """
    found: dict[str, HeldWeight] = {}
    for node, value in _reads(graph):
        for weight in _counted(node, value):
            reason = _reason(node, value)
            found.setdefault(weight.name, replace(weight, reason=reason))
    return tuple(found.values())


def _counted(node: Node | None, value: Value) -> tuple[HeldWeight, ...]:
    """Return the weights that a value stands for: itself, or what it was folded from.

    What was computed from no weight (a mask, a table of positions) is one only where a product
    reads it.
    """
    own = held(value)
    known = sources(value)
    if own is None or known:
        return known or ()
    is_computed = known is not None
    is_factor = node is not None and node.op_type in _PRODUCTS
    if is_factor or not is_computed:
        return (own,)
    return ()


def _reads(graph: Graph) -> Iterator[tuple[Node | None, Value]]:
    """Yield (reader, value) for everything that nodes read which the outputs depend on.

    What a body reads comes after what its node reads.
    """
    for node in _needed(graph):
        for value in node.inputs:
            if value is not None:
                yield node, value
        for _, body in bodies(node):
            yield from _reads(body)
    for value in graph.outputs:
        yield None, value


def _needed(graph: Graph) -> list[Node]:
    """Return the nodes whose values reach an output, in execution order."""
    needed = []
    wanted: set[Value] = set(graph.outputs)
    # Backwards: who reads a value is met before the node that writes it.
    for node in reversed(graph):
        if wanted.intersection(node.outputs):
            needed.append(node)
            wanted.update(v for v in node.inputs if v is not None)
            for _, body in bodies(node):
                wanted.update(_captured(body))
    return needed[::-1]


def _captured(body: Graph) -> Iterator[Value]:
    """Yield all values that a body reads; those of the graph around it are among them."""
    yield from body.outputs
    for node in body:
        yield from (v for v in node.inputs if v is not None)
        for _, inner in bodies(node):
            yield from _captured(inner)


def _reason(node: Node | None, value: Value) -> str:
    if node is None:
        return "it is an output of the model as it is"
    bias_at = _BIAS.get(node.op_type)
    if bias_at is not None and input_at(node, bias_at) is value:
        return "a bias stays float"
    if node.op_type == "QuantizeLinear":
        return "the model itself quantizes it at run time (QuantizeLinear), and stores it in float"
    if node.domain not in ("", "ai.onnx"):
        return f"it is read by {node.op_type} of {node.domain}, which is left as it is"
    return f"no integer kernel is known for {node.op_type} with a constant"
