"""fp16 and bf16 models: arithmetic in float32 inside, the model's own types at its ends.

ONNX Runtime's CPU kernels compute most float16 ops in float32 anyway, casting on every node, and
its integer kernels take float32 scales; so a quantized half-precision model is float32 between its
integer ops.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir import DataType, Graph, Model, Node, Value

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
        if any(value.dtype in _HALVES for value in scope.initializers.values()):
            return True
    return False


def _half_ends(graph: Graph) -> list[Value]:
    ends = [*graph.inputs, *graph.outputs]
    return [value for value in ends if value.dtype in _HALVES]


def widen(model: Model) -> bool:
    """Turn half-precision arithmetic into float32, in place; True if there was any."""
    graph = model.graph
    tensors = _half_tensors(graph)
    if not tensors and not _half_ends(graph):
        return False
    # What the model put out in half precision, before nodes are told to write float32.
    narrowed = {v.name: v.dtype for v in graph.outputs if v.dtype in _HALVES}
    for value in tensors:
        _widen_tensor(value)
    for node in list(walk(graph)):
        _widen_attributes(node)
        for output in node.outputs:
            _declare_float(output)
    for body in scopes(graph):
        if body is not graph:
            for value in body.inputs:
                _declare_float(value)
    for value in graph.inputs:
        if value.dtype in _HALVES:
            _cast_input(graph, value)
    for i, value in enumerate(list(graph.outputs)):
        dtype = narrowed.get(value.name)
        if dtype is not None:
            _cast_output(graph, i, value, dtype)
    return True


def _half_tensors(graph: Graph) -> list[Value]:
    found = []
    for scope in scopes(graph):
        for value in scope.initializers.values():
            tensor = value.const_value
            if tensor is not None and tensor.dtype in _HALVES:
                found.append(value)
    return found


def _widen_tensor(value: Value) -> None:
    assert value.const_value is not None
    array = value.const_value.numpy().astype(np.float32)
    value.const_value = ir.Tensor(array, name=value.name)
    value.type = ir.TensorType(_FLOAT)


def _declare_float(value: Value) -> None:
    if value.dtype in _HALVES:
        value.type = ir.TensorType(_FLOAT)


def _widen_attributes(node: Node) -> None:
    for key, attribute in list(node.attributes.items()):
        # Constants in attributes (ConstantOfShape), and the types that Cast and others name.
        if attribute.type == ir.AttributeType.TENSOR:
            tensor = attribute.as_tensor()
            if tensor.dtype in _HALVES:
                wide = ir.Tensor(tensor.numpy().astype(np.float32))
                node.attributes[key] = ir.AttrTensor(key, wide)
        elif _names_half(key, attribute):
            node.attributes[key] = ir.AttrInt64(key, _FLOAT.value)


def _names_half(key: str, attribute: ir.Attr) -> bool:
    """True for an attribute that says that a result is of half precision."""
    if key not in _TYPE_ATTRIBUTES or attribute.type != ir.AttributeType.INT:
        return False
    return attribute.as_int() in _HALVES


def _cast_input(graph: Graph, value: Value) -> None:
    uses = tuple(value.uses())
    to_float = {"to": _FLOAT.value}
    cast = ir.node("Cast", [value], to_float, name=f"{value.name}_widened")
    result = cast.outputs[0]
    result.name = f"{value.name}_float32"
    result.type = ir.TensorType(_FLOAT)
    result.shape = value.shape
    graph.insert_before(graph[0], [cast])
    for user, index in uses:
        user.replace_input_with(index, result)


def _cast_output(graph: Graph, index: int, value: Value, dtype: DataType) -> None:
    name = value.name
    to_half = {"to": dtype.value}
    cast = ir.node("Cast", [value], to_half, name=f"{name}_narrowed")
    result = cast.outputs[0]
    result.type = ir.TensorType(dtype)
    result.shape = value.shape
    value.type = ir.TensorType(_FLOAT)
    graph.append(cast)
    graph.outputs[index] = result
    value.name = f"{name}_float32"
    result.name = name
