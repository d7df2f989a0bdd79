"""fp16 and bf16 models: arithmetic in float32 inside, the model's own types at its inputs and outputs.

ONNX Runtime's CPU kernels compute most float16 ops in float32 anyway, casting on every node, and its integer kernels take
float32 scales; so a quantized half-precision model is float32 between its integer ops.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .scopes import scopes, walk

_HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def holds_halves(model: ir.Model) -> bool:
    """True if a tensor, an input or an output of a model is of half precision."""
    ends = (*model.graph.inputs, *model.graph.outputs)
    held = (v for scope in scopes(model.graph) for v in scope.initializers.values())
    return any(v.dtype in _HALVES for v in ends) or any(v.dtype in _HALVES for v in held)


def widen(model: ir.Model) -> bool:
    """Turn half-precision arithmetic into float32, in place; True if there was any."""
    graph = model.graph
    nodes, graphs = list(walk(graph)), list(scopes(graph))
    held = [v for g in graphs for v in g.initializers.values()]
    found = [v for v in held if v.const_value is not None and v.const_value.dtype in _HALVES]
    ends = [v for v in (*graph.inputs, *graph.outputs) if v.dtype in _HALVES]
    if not found and not ends:
        return False
    outer = {v.name: v.dtype for v in graph.outputs if v.dtype in _HALVES}
    for value in found:
        assert value.const_value is not None
        array = value.const_value.numpy().astype(np.float32)
        value.const_value, value.type = (
            ir.Tensor(array, name=value.name),
            ir.TensorType(ir.DataType.FLOAT),
        )
    for node in nodes:
        _widen_attributes(node)
        for output in node.outputs:
            if output.dtype in _HALVES:
                output.type = ir.TensorType(ir.DataType.FLOAT)
    for body in graphs[1:]:
        for value in body.inputs:
            if value.dtype in _HALVES:
                value.type = ir.TensorType(ir.DataType.FLOAT)
    for value in graph.inputs:
        if value.dtype in _HALVES:
            _cast_input(graph, value)
    for i, value in enumerate(list(graph.outputs)):
        dtype = outer.get(value.name)
        if dtype is not None:
            _cast_output(graph, i, value, dtype)
    return True


def _widen_attributes(node: ir.Node) -> None:
    for key, attribute in list(node.attributes.items()):
        if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype in _HALVES:
            node.attributes[key] = ir.AttrTensor(
                key, ir.Tensor(attribute.as_tensor().numpy().astype(np.float32))
            )
        elif (
            attribute.type == ir.AttributeType.INT
            and key in ("to", "dtype", "output_dtype")
            and attribute.as_int() in _HALVES
        ):
            node.attributes[key] = ir.AttrInt64(key, ir.DataType.FLOAT.value)


def _cast_input(graph: ir.Graph, value: ir.Value) -> None:
    uses = tuple(value.uses())
    cast = ir.node("Cast", [value], {"to": ir.DataType.FLOAT.value}, name=f"{value.name}_widened")
    result = cast.outputs[0]
    result.name, result.type, result.shape = (
        f"{value.name}_float32",
        ir.TensorType(ir.DataType.FLOAT),
        value.shape,
    )
    graph.insert_before(graph[0], [cast])
    for user, index in uses:
        user.replace_input_with(index, result)


def _cast_output(graph: ir.Graph, index: int, value: ir.Value, dtype: ir.DataType) -> None:
    cast = ir.node("Cast", [value], {"to": dtype.value}, name=f"{value.name}_narrowed")
    result, name = cast.outputs[0], value.name
    result.type, result.shape = ir.TensorType(dtype), value.shape
    value.type = ir.TensorType(ir.DataType.FLOAT)
    graph.append(cast)
    graph.outputs[index] = result
    value.name, result.name = f"{name}_float32", name
