"""fp16 and bf16 models: arithmetic in float32 inside, the model's own types at its ends.

ONNX Runtime's CPU kernels compute most float16 ops in float32 anyway, casting on every node, and
its integer kernels take float32 scales; so a quantized half-precision model is float32 between its
integer ops.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir import (
    AttributeType,
    DataType,
    Graph,
    Model,
    Node,
    Tensor,
    TensorType,
    Value,
)

from .scopes import scopes, walk

_HALVES = (DataType.FLOAT16, DataType.BFLOAT16)
_FLOAT = DataType.FLOAT
_TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype")
"""Attributes that say of which type a result is."""


def holds_halves(model: Model) -> bool:
    """True if a tensor, an input or an output of a model is of half precision."""
    if _half_ends(model.graph):
        return True
    for scope in scopes(model.graph):
        held = scope.initializers.values()
        if any(map(_is_half, held)):
            return True
    return False


def _is_half(value: Value) -> bool:
    return value.dtype in _HALVES


def _half_ends(graph: Graph) -> list[Value]:
    ends = [*graph.inputs, *graph.outputs]
    return list(filter(_is_half, ends))


def widen(model: Model) -> bool:
    """Turn half-precision arithmetic into float32, in place; True if there was any."""
    graph = model.graph
    tensors = _half_tensors(graph)
    if not tensors and not _half_ends(graph):
        return False
    # What the model put out in half precision, before nodes are told to write float32.
    narrowed = {v.name: v.dtype for v in filter(_is_half, graph.outputs)}
    for value in tensors:
        _widen_tensor(value)
    _compute_in_float(graph)
    for value in graph.inputs:
        if _is_half(value):
            _cast_input(graph, value)
    for i, value in enumerate(list(graph.outputs)):
        dtype = narrowed.get(value.name)
        if dtype is not None:
            _cast_output(graph, i, value, dtype)
    return True


def _compute_in_float(graph: Graph) -> None:
    """Let every node, in bodies too, write float32; the model's own inputs stay as they are."""
    for node in list(walk(graph)):
        _widen_attributes(node)
        for output in node.outputs:
            _declare_float(output)
    for body in scopes(graph):
        if body is graph:
            continue
        for value in body.inputs:
            _declare_float(value)


def _half_tensors(graph: Graph) -> list[Value]:
    found = []
    for scope in scopes(graph):
        for value in scope.initializers.values():
            tensor = value.const_value
            if tensor is not None and tensor.dtype in _HALVES:
                found.append(value)
    return found


def _widen_tensor(value: Value) -> None:
    tensor = value.const_value
    assert tensor is not None
    array = tensor.numpy().astype(np.float32)
    value.const_value = Tensor(array, name=value.name)
    value.type = TensorType(_FLOAT)


def _declare_float(value: Value) -> None:
    if _is_half(value):
        value.type = TensorType(_FLOAT)


def _widen_attributes(node: Node) -> None:
    """Widen constants in attributes (ConstantOfShape), and types that Cast and others name."""
    attributes = node.attributes
    for key, attribute in list(attributes.items()):
        if _names_half(key, attribute):
            attributes[key] = ir.AttrInt64(key, _FLOAT.value)
        if attribute.type != AttributeType.TENSOR:
            continue
        tensor = attribute.as_tensor()
        if tensor.dtype in _HALVES:
            array = tensor.numpy().astype(np.float32)
            wide = Tensor(array)
            attributes[key] = ir.AttrTensor(key, wide)


def _names_half(key: str, attribute: ir.Attr) -> bool:
    """True for an attribute that says that a result is of half precision."""
    if key not in _TYPE_ATTRIBUTES or attribute.type != AttributeType.INT:
        return False
    named = attribute.as_int()
    return named in _HALVES


def _cast_input(graph: Graph, value: Value) -> None:
    uses = tuple(value.uses())
    to_float = {"to": _FLOAT.value}
    cast = ir.node("Cast", [value], to_float, name=f"{value.name}_widened")
    result = cast.outputs[0]
    result.name = f"{value.name}_float32"
    result.type = TensorType(_FLOAT)
    result.shape = value.shape
    first = graph[0]
    graph.insert_before(first, [cast])
    for user, index in uses:
        user.replace_input_with(index, result)


def _cast_output(graph: Graph, index: int, value: Value, dtype: DataType) -> None:
    name = value.name
    to_half = {"to": dtype.value}
    cast = ir.node("Cast", [value], to_half, name=f"{name}_narrowed")
    result = cast.outputs[0]
    result.type = TensorType(dtype)
    result.shape = value.shape
    value.type = TensorType(_FLOAT)
    graph.append(cast)
    graph.outputs[index] = result
    # The old one gives the name up first: a graph holds each name once.
    value.name = f"{name}_float32"
    result.name = name
