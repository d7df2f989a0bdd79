"""Rewrites of the float graph that keep its function: constants folded, what does nothing bypassed."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from .provenance import record

logger = logging.getLogger(__name__)

_NEVER_FOLDED = frozenset({"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli", "Dropout",
                           "QuantizeLinear", "DequantizeLinear"})  # fmt: skip
_FOLD_UP_TO = 1 << 20
"""Elements a folded constant may have beyond its inputs'."""


def drop_unused_initializers(graph: ir.Graph) -> None:
    """Remove initializers that nobody reads; ONNX Runtime drops them, and then misses those that were lent to it."""
    for name in [
        n for n, v in graph.initializers.items() if not v.uses() and not v.is_graph_output()
    ]:
        if not graph.initializers[name].is_graph_input():
            del graph.initializers[name]


def constant(value: ir.Value | None) -> np.ndarray | None:
    """Return the array of an initializer that no input can override; None for anything else."""
    if (
        value is None
        or value.const_value is None
        or value.is_graph_input()
        or value.producer() is not None
    ):
        return None
    array: np.ndarray = value.const_value.numpy()
    return array


def is_constant(value: ir.Value | None) -> bool:
    """True for an initializer that no input can override; its data is not read."""
    return (
        value is not None
        and value.const_value is not None
        and not value.is_graph_input()
        and value.producer() is None
    )


def add_initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """Register an array under a name that is not taken yet."""
    taken = graph.initializers
    unique, i = name, 1
    while unique in taken:
        unique, i = f"{name}_{i}", i + 1
    tensor = ir.Tensor(array, name=unique)
    value = ir.Value(
        name=unique,
        type=ir.TensorType(tensor.dtype),
        shape=ir.Shape(array.shape),
        const_value=tensor,
    )
    graph.register_initializer(value)
    return value


def replace_input(node: ir.Node, index: int, value: ir.Value) -> None:
    """Set one input, lengthening the list where it is shorter."""
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, value)


class Folded:
    """Results of folding: equal ones are one constant of the main graph, in whatever body they were computed.

    Args:
        main: The main graph, which holds all constants.
    """

    def __init__(self, main: ir.Graph) -> None:
        self._main = main
        self._known: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        """Return an array as an initializer, under a name where it is new."""
        held = np.ascontiguousarray(array).reshape(array.shape)
        if held.nbytes < _COMPARED_FROM:
            return add_initializer(self._main, name, held)
        key = (
            held.dtype.str,
            held.shape,
            hashlib.sha256(held.reshape(-1).view(np.uint8).data).digest(),
        )
        if key not in self._known:
            self._known[key] = add_initializer(self._main, name, held)
        return self._known[key]


_COMPARED_FROM = 1024
"""Bytes from which a folded constant is looked up among the others: branches often prepare one weight each for itself."""


def fold_constants(
    graph: ir.Graph, folded: Folded, note: Callable[[ir.Value, ir.Value], None]
) -> None:
    """Evaluate nodes whose inputs are all constants, with onnx's reference evaluator.

    Args:
        graph: The main graph or a body; changed in place.
        folded: Takes the results.
        note: Told (result, source) where a result holds the numbers of one constant in another layout or type.
    """
    for node in list(graph):
        if (
            node.domain != ""
            or node.op_type in _NEVER_FOLDED
            or not node.inputs
            or any(a.type in _GRAPHS for a in node.attributes.values())
        ):
            continue
        if any(output.is_graph_output() for output in node.outputs) or not all(
            v is None or is_constant(v) for v in node.inputs
        ):
            continue
        values = [v for v in node.inputs if v is not None]
        if any(v.const_value is None or v.const_value.dtype in _UNFOLDED_TYPES for v in values):
            continue
        arrays = {v.name or "": v.const_value.numpy() for v in values if v.const_value is not None}
        results = _evaluate(node, arrays, graph.opset_imports.get("", 21))
        if results is None or sum(r.size for r in results) > _FOLD_UP_TO + sum(
            a.size for a in arrays.values()
        ):
            continue
        outputs = list(node.outputs)
        for output, result in zip(outputs, results, strict=True):
            name = output.name or "folded"
            output.name = f"{name}_unfolded"
            made = folded.constant(name, result)
            output.replace_all_uses_with(made)
            record(made, values)
            if node.op_type in _LAYOUTS and node.inputs[0] is not None:
                note(made, node.inputs[0])
        graph.remove(node, safe=True)


_LAYOUTS = frozenset(
    {"Identity", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Cast"}
)
"""What changes nothing about a constant but its layout and its type."""
_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
_UNFOLDED_TYPES = (
    ir.DataType.STRING,
    ir.DataType.INT4,
    ir.DataType.UINT4,
    ir.DataType.BFLOAT16,
    ir.DataType.FLOAT8E4M3FN,
)


def _evaluate(
    node: ir.Node, arrays: dict[str, np.ndarray], opset: int
) -> Sequence[np.ndarray] | None:
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
    graph = ir.Graph(
        list(by_name.values()),
        list(alone.outputs),
        nodes=[alone],
        opset_imports={"": opset},
        name="fold",
    )
    try:
        found = ReferenceEvaluator(ir.to_proto(ir.Model(graph, ir_version=10))).run(None, arrays)
    except Exception as error:  # an op the evaluator lacks simply stays unfolded
        logger.debug("%s is not folded: %s", node.name, error)
        return None
    return (
        [np.asarray(r) for r in found]
        if all(isinstance(r, np.ndarray | np.generic) for r in found)
        else None
    )


def bypass_identities(graph: ir.Graph) -> None:
    """Let whoever reads an Identity read its input. The outputs of the model, and of a body, need theirs."""
    for node in list(graph):
        if (
            node.op_type == "Identity"
            and node.domain == ""
            and node.inputs[0] is not None
            and not node.outputs[0].is_graph_output()
        ):
            node.outputs[0].replace_all_uses_with(node.inputs[0])
            graph.remove(node, safe=True)


def bypass_dropout(node: ir.Node) -> None:
    """Let whoever reads an inference-mode Dropout read its input."""
    training = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    fixed = (
        len(node.inputs) < 3
        or node.inputs[2] is None
        or (training is not None and not bool(training))
    )
    if (
        fixed
        and node.inputs[0] is not None
        and not node.outputs[0].is_graph_output()
        and not any(o.uses() for o in node.outputs[1:])
    ):
        node.outputs[0].replace_all_uses_with(node.inputs[0])


def take_over(value: ir.Value, old: ir.Value) -> None:
    """Let ``value`` be used, named and put out where ``old`` was."""
    name = old.name
    old.replace_all_uses_with(value, replace_graph_outputs=True)
    old.name = f"{name}_gone"
    value.name, value.shape, value.type = name, old.shape, old.type or value.type


def add_from_sum(node: ir.Node) -> None:
    """Turn a Sum of two, as older exporters write residual connections, into Add, which has an integer kernel."""
    if len(node.inputs) == 2:
        node.op_type = "Add"
