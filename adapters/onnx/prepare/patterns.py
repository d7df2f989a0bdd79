"""Small questions about nodes and values, of which patterns in a graph are made."""

from __future__ import annotations

from typing import TypeGuard

from onnx_ir import DataType, Node, Value

FLOATS = (
    DataType.FLOAT,
    DataType.FLOAT16,
    DataType.BFLOAT16,
    DataType.DOUBLE,
)
"""The types that weights and activations may have."""


def is_standard(node: Node | None, *op_types: str) -> TypeGuard[Node]:
    """True for a node of the standard domain that is of one of these types."""
    return node is not None and node.domain == "" and node.op_type in op_types


def name_of(value: Value) -> str:
    """Return a value's name; empty where it has none."""
    return value.name or ""


def rank_of(value: Value | None) -> int | None:
    """Return how many axes a value has; None where that is unknown."""
    if value is None or value.shape is None:
        return None
    return len(value.shape)


def input_at(node: Node, index: int) -> Value | None:
    """Return an input; None where it is left out, or the list of inputs is shorter."""
    if index < len(node.inputs):
        return node.inputs[index]
    return None


def producer_of(value: Value | None) -> Node | None:
    """Return the node that writes a value."""
    if value is None:
        return None
    return value.producer()


def producer_at(node: Node, index: int) -> Node | None:
    """Return the node that writes an input."""
    return producer_of(input_at(node, index))


def only_use(value: Value) -> tuple[Node, int] | None:
    """Return the only reader of a value and where it reads it; None for outputs of a graph."""
    uses = tuple(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None
    user, index = uses[0]
    return user, index


def int_of(node: Node, name: str, default: int) -> int:
    """Return an attribute that is a whole number."""
    if name in node.attributes:
        return node.attributes[name].as_int()
    return default


def float_of(node: Node, name: str, default: float) -> float:
    """Return an attribute that is a number."""
    if name in node.attributes:
        return node.attributes[name].as_float()
    return default


def text_of(node: Node, name: str, default: str) -> str:
    """Return an attribute that is text."""
    if name in node.attributes:
        return node.attributes[name].as_string()
    return default


def ints_of(node: Node, name: str) -> list[int] | None:
    """Return an attribute that is a list of whole numbers; None where it is not given."""
    if name in node.attributes:
        return list(node.attributes[name].as_ints())
    return None
