"""Constants of a graph and the values around them: read, added, exchanged, dropped."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir import Graph, Node, Value

from .scopes import free_name


def is_constant(value: Value | None) -> bool:
    """True for an initializer that no input can override; its data is not read."""
    if value is None or value.const_value is None:
        return False
    return not value.is_graph_input() and value.producer() is None


def constant(value: Value | None) -> np.ndarray | None:
    """Return the array of an initializer that no input can override; None for anything else."""
    if value is None or value.const_value is None or not is_constant(value):
        return None
    array: np.ndarray = value.const_value.numpy()
    return array


def scalar(value: Value | None) -> float | None:
    """Return the first number of a constant; None for anything else."""
    array = constant(value)
    if array is None:
        return None
    return float(array.reshape(-1)[0])


def add_initializer(graph: Graph, name: str, array: np.ndarray) -> Value:
    """Register an array under a name that no initializer has yet."""
    free = free_name(name, graph.initializers)
    tensor = ir.Tensor(array, name=free)
    return register(graph, free, tensor)


def register(graph: Graph, name: str, tensor: ir.TensorProtocol) -> Value:
    """Register a tensor under a name that must be free."""
    value = Value(
        name=name,
        type=ir.TensorType(tensor.dtype),
        shape=ir.Shape(tensor.shape.numpy()),
        const_value=tensor,
    )
    graph.register_initializer(value)
    return value


def replace_input(node: Node, index: int, value: Value) -> None:
    """Set one input, lengthening the list where it is shorter."""
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, value)


def take_over(value: Value, old: Value) -> None:
    """Let ``value`` be used, named and put out where ``old`` was."""
    name = old.name
    old.replace_all_uses_with(value, replace_graph_outputs=True)
    old.name = f"{name}_gone"
    value.name = name
    value.shape = old.shape
    value.type = old.type or value.type


def drop_unused_initializers(graph: Graph) -> None:
    """Remove initializers that nobody reads.

    ONNX Runtime drops them by itself, and then misses those that were lent to it.
    """
    for name, value in list(graph.initializers.items()):
        if value.uses() or value.is_graph_output() or value.is_graph_input():
            continue
        del graph.initializers[name]
