"""Rewrites of the float graph that keep its function: constants and batch norm folded, pooling recognized."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

logger = logging.getLogger(__name__)

_NEVER_FOLDED = frozenset({"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli", "Dropout",
                           "QuantizeLinear", "DequantizeLinear"})  # fmt: skip
_FOLD_UP_TO = 1 << 20
"""Elements a folded constant may have beyond its inputs'."""


def drop_unused_initializers(graph: ir.Graph) -> None:
    """Remove initializers that nobody reads; ONNX Runtime drops them, and then misses those that were lent to it."""
    for name in [n for n, v in graph.initializers.items() if not v.uses() and not v.is_graph_output()]:
        if not graph.initializers[name].is_graph_input():
            del graph.initializers[name]


def constant(value: ir.Value | None) -> np.ndarray | None:
    """Return the array of an initializer that no input can override; None for anything else."""
    if value is None or value.const_value is None or value.is_graph_input() or value.producer() is not None:
        return None
    array: np.ndarray = value.const_value.numpy()
    return array


def is_constant(value: ir.Value | None) -> bool:
    """True for an initializer that no input can override; its data is not read."""
    return value is not None and value.const_value is not None and not value.is_graph_input() and value.producer() is None


def add_initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """Register an array under a name that is not taken yet."""
    taken = graph.initializers
    unique, i = name, 1
    while unique in taken:
        unique, i = f"{name}_{i}", i + 1
    tensor = ir.Tensor(array, name=unique)
    value = ir.Value(name=unique, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
    graph.register_initializer(value)
    return value


def replace_input(node: ir.Node, index: int, value: ir.Value) -> None:
    """Set one input, lengthening the list where it is shorter."""
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, value)


def fold_constants(graph: ir.Graph) -> None:
    """Evaluate nodes whose inputs are all constants, with onnx's reference evaluator."""
    for node in list(graph):
        if (
            node.domain != ""
            or node.op_type in _NEVER_FOLDED
            or not node.inputs
            or any(a.type in _GRAPHS for a in node.attributes.values())
        ):
            continue
        if any(output.is_graph_output() for output in node.outputs) or not all(v is None or is_constant(v) for v in node.inputs):
            continue
        values = [v for v in node.inputs if v is not None]
        if any(v.const_value is None or v.const_value.dtype in _UNFOLDED_TYPES for v in values):
            continue
        arrays = {v.name or "": v.const_value.numpy() for v in values if v.const_value is not None}
        results = _evaluate(node, arrays, graph.opset_imports.get("", 21))
        if results is None or sum(r.size for r in results) > _FOLD_UP_TO + sum(a.size for a in arrays.values()):
            continue
        outputs = list(node.outputs)
        for output, result in zip(outputs, results, strict=True):
            name = output.name or "folded"
            output.name = f"{name}_unfolded"
            output.replace_all_uses_with(add_initializer(graph, name, np.ascontiguousarray(result)))
        graph.remove(node, safe=True)


_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
_UNFOLDED_TYPES = (ir.DataType.STRING, ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.BFLOAT16, ir.DataType.FLOAT8E4M3FN)


def _evaluate(node: ir.Node, arrays: dict[str, np.ndarray], opset: int) -> Sequence[np.ndarray] | None:
    inputs = [
        ir.Value(name=v.name, type=v.type or ir.TensorType(v.const_value.dtype), shape=None)
        for v in node.inputs
        if v is not None and v.const_value
    ]
    by_name = {v.name: v for v in inputs}
    alone = ir.Node(
        node.domain, node.op_type, [by_name[v.name] if v is not None else None for v in node.inputs], list(node.attributes.values()),
        num_outputs=len(node.outputs), name="alone",
    )  # fmt: skip
    for mine, theirs in zip(alone.outputs, node.outputs, strict=True):
        mine.name = theirs.name
    graph = ir.Graph(list(by_name.values()), list(alone.outputs), nodes=[alone], opset_imports={"": opset}, name="fold")
    try:
        found = ReferenceEvaluator(ir.to_proto(ir.Model(graph, ir_version=10))).run(None, arrays)
    except Exception as error:  # an op the evaluator lacks simply stays unfolded
        logger.debug("%s is not folded: %s", node.name, error)
        return None
    return [np.asarray(r) for r in found] if all(isinstance(r, np.ndarray | np.generic) for r in found) else None


def bypass_identities(graph: ir.Graph) -> None:
    """Let whoever reads an Identity read its input. Bodies of control flow need theirs, and so do the model's outputs."""
    for node in list(graph):
        if node.op_type == "Identity" and node.domain == "" and node.inputs[0] is not None and not node.outputs[0].is_graph_output():
            if any(user.graph is not graph for user, _ in node.outputs[0].uses()):
                continue
            node.outputs[0].replace_all_uses_with(node.inputs[0])
            graph.remove(node, safe=True)


def bypass_dropout(node: ir.Node) -> None:
    """Let whoever reads an inference-mode Dropout read its input."""
    training = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    fixed = len(node.inputs) < 3 or node.inputs[2] is None or (training is not None and not bool(training))
    if fixed and node.inputs[0] is not None and not node.outputs[0].is_graph_output() and not any(o.uses() for o in node.outputs[1:]):
        node.outputs[0].replace_all_uses_with(node.inputs[0])


def fold_batch_norm(node: ir.Node) -> bool:
    """Fold a BatchNormalization into the Conv or ConvTranspose before it: y = (conv(x) - mean) * gamma / sqrt(var + eps) + beta."""
    source = node.inputs[0].producer() if node.inputs[0] is not None else None
    if source is None or source.op_type not in ("Conv", "ConvTranspose") or source.domain != "" or len(node.inputs) < 5:
        return False
    graph = node.graph
    training = node.attributes.get("training_mode")
    if not isinstance(graph, ir.Graph) or (training is not None and training.as_int()) or any(o.uses() for o in node.outputs[1:]):
        return False
    middle = source.outputs[0]
    if len(middle.uses()) != 1 or middle.is_graph_output() or source.graph is not graph:
        return False
    scale, shift, mean, variance = (constant(v) for v in node.inputs[1:5])
    weight = constant(source.inputs[1]) if len(source.inputs) > 1 else None
    has_bias = len(source.inputs) > 2 and source.inputs[2] is not None
    bias = constant(source.inputs[2]) if has_bias else np.float32(0.0)
    if any(a is None for a in (scale, shift, mean, variance, weight, bias)):
        return False
    assert scale is not None and shift is not None and mean is not None and variance is not None and weight is not None and bias is not None
    if not all(np.isfinite(a).all() for a in (scale, shift, mean, variance, weight, bias)):
        return False  # so that what is wrong keeps its name
    epsilon = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5
    factor = scale.astype(np.float64) / np.sqrt(variance.astype(np.float64) + epsilon)
    groups = source.attributes["group"].as_int() if "group" in source.attributes else 1
    if source.op_type == "Conv":
        shape = (-1, *(1,) * (weight.ndim - 1))
        folded = weight * factor.reshape(shape)
    else:  # ConvTranspose weights are (inputs, outputs / groups, ...)
        per_group = np.repeat(factor.reshape(groups, 1, -1), weight.shape[0] // groups, axis=1).reshape(weight.shape[0], weight.shape[1])
        folded = weight * per_group.reshape(*weight.shape[:2], *(1,) * (weight.ndim - 2))
    old = source.inputs[1]
    assert old is not None
    name = old.name or "weight"
    replace_input(source, 1, add_initializer(graph, f"{name}_folded", folded.astype(weight.dtype)))
    moved = (bias.astype(np.float64) - mean) * factor + shift
    replace_input(source, 2, add_initializer(graph, f"{name}_bias_folded", moved.astype(weight.dtype)))
    take_over(source.outputs[0], node.outputs[0])
    graph.remove(node, safe=True)
    return True


def take_over(value: ir.Value, old: ir.Value) -> None:
    """Let ``value`` be used, named and put out where ``old`` was."""
    name = old.name
    old.replace_all_uses_with(value, replace_graph_outputs=True)
    old.name = f"{name}_gone"
    value.name, value.shape, value.type = name, old.shape, old.type or value.type


def pool_from_mean(node: ir.Node) -> None:
    """Turn ReduceMean over the two spatial axes into GlobalAveragePool, which has an integer kernel."""
    x, graph = node.inputs[0], node.graph
    if x is None or not isinstance(graph, ir.Graph) or x.shape is None or len(x.shape) != 4:
        return
    axes = _axes(node)
    keep = node.attributes["keepdims"].as_int() if "keepdims" in node.attributes else 1
    if axes is None or sorted(a % 4 for a in axes) != [2, 3]:
        return
    pool = ir.node("GlobalAveragePool", [x], name=node.name)
    new = [pool]
    if not keep:
        new.append(ir.node("Flatten", [pool.outputs[0]], name=f"{node.name}_flatten"))
        pool.outputs[0].name = f"{node.outputs[0].name}_pooled"
        pool.outputs[0].type = x.type
    graph.insert_before(node, new)
    take_over(new[-1].outputs[0], node.outputs[0])
    graph.remove(node, safe=True)


def _axes(node: ir.Node) -> list[int] | None:
    if "axes" in node.attributes:
        return [int(a) for a in node.attributes["axes"].as_ints()]
    axes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    return [int(a) for a in axes.ravel()] if axes is not None else None
