"""Nodes whose inputs are all constants, evaluated once and for all."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from onnx_ir import DataType, Graph, Model, Node, Value

from octavo.adapters.onnx.prepare.constants import add_initializer, is_constant
from octavo.adapters.onnx.prepare.provenance import record
from octavo.adapters.onnx.prepare.scopes import has_bodies
from octavo.core.system.log import get_logger

logger = get_logger("onnx")

_NEVER_FOLDED = frozenset(
    {
        "RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial",
        "Bernoulli", "Dropout", "QuantizeLinear", "DequantizeLinear",
    }
)  # fmt: skip
"""Operators whose results differ from run to run, and those that tell what is quantized already."""

_FOLD_UP_TO = 1 << 20
"""Elements a folded constant may have beyond its inputs'."""

_COMPARED_FROM = 1024
"""Bytes from which a folded constant is looked up among the others.

Branches often prepare one weight each for itself.
"""

_LAYOUTS = frozenset(
    {"Identity", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Cast"}
)
"""What changes nothing about a constant but its layout and its type."""

_UNFOLDED_TYPES = (
    DataType.STRING,
    DataType.INT4,
    DataType.UINT4,
    DataType.BFLOAT16,
    DataType.FLOAT8E4M3FN,
)


class Folded:
    """Results of folding: equal ones are one constant of the main graph, wherever computed.

    Args:
        main: The main graph, which holds all constants.
    """

    def __init__(self, main: Graph) -> None:
        self._main = main
        self._known: dict[tuple[str, tuple[int, ...], bytes], Value] = {}

    def constant(self, name: str, array: np.ndarray) -> Value:
        """Return an array as an initializer, under a name where it is new."""
        # ascontiguousarray makes a vector of one element of a number.
        held = np.ascontiguousarray(array).reshape(array.shape)
        if held.nbytes < _COMPARED_FROM:
            return add_initializer(self._main, name, held)
        content = held.reshape(-1).view(np.uint8).data
        key = (held.dtype.str, held.shape, hashlib.sha256(content).digest())
        found = self._known.get(key)
        if found is None:
            found = add_initializer(self._main, name, held)
            self._known[key] = found
        return found


def fold_constants(
    graph: Graph, folded: Folded, note: Callable[[Value, Value], None]
) -> None:
    """Evaluate nodes whose inputs are all constants, with onnx's reference evaluator.

    Args:
        graph: The main graph or a body; changed in place.
        folded: Takes the results.
        note: Told (result, source) where a result holds the numbers of one constant in another
            layout or type.
    """
    for node in list(graph):
        if not _may_be_folded(node):
            continue
        results = _evaluate(node, graph.opset_imports.get("", 21))
        if results is not None and not _is_too_large(node, results):
            _put_in_place(node, results, folded, note)
            graph.remove(node, safe=True)


def _may_be_folded(node: Node) -> bool:
    if node.domain != "" or node.op_type in _NEVER_FOLDED:
        return False
    if not node.inputs or has_bodies(node):
        return False
    # What a graph puts out needs a node that writes it.
    if any(output.is_graph_output() for output in node.outputs):
        return False
    return all(_is_evaluable(value) for value in node.inputs if value is not None)


def _is_evaluable(value: Value) -> bool:
    tensor = value.const_value
    return (
        is_constant(value)
        and tensor is not None
        and tensor.dtype not in _UNFOLDED_TYPES
    )


def _is_too_large(node: Node, results: Sequence[np.ndarray]) -> bool:
    allowed = _FOLD_UP_TO
    # Once each: an input may be read twice.
    for value in set(node.inputs):
        if value is not None and value.const_value is not None:
            allowed += value.const_value.size
    return sum(result.size for result in results) > allowed


def _put_in_place(
    node: Node,
    results: Sequence[np.ndarray],
    folded: Folded,
    note: Callable[[Value, Value], None],
) -> None:
    """Let constants be read where a node's outputs were."""
    read = [v for v in node.inputs if v is not None]
    for output, result in zip(list(node.outputs), results, strict=True):
        name = output.name or "folded"
        output.name = f"{name}_unfolded"
        made = folded.constant(name, result)
        output.replace_all_uses_with(made)
        record(made, read)
        if node.op_type in _LAYOUTS and node.inputs[0] is not None:
            note(made, node.inputs[0])


def _evaluate(node: Node, opset: int) -> Sequence[np.ndarray] | None:
    """Return a node's results; None where the evaluator cannot compute them as arrays."""
    given: dict[str, np.ndarray] = {}
    inputs: dict[str | None, Value] = {}
    for value in node.inputs:
        if value is None or value.const_value is None:
            continue
        tensor = value.const_value
        given[value.name or ""] = tensor.numpy()
        kind = value.type or ir.TensorType(tensor.dtype)
        inputs[value.name] = Value(name=value.name, type=kind, shape=None)
    model = _alone(node, inputs, opset)
    try:
        found = ReferenceEvaluator(ir.to_proto(model)).run(None, given)
    except Exception as error:
        # An op the evaluator lacks simply stays unfolded; it raises errors of any kind.
        logger.debug("%s is not folded: %s", node.name, error)
        return None
    if not all(isinstance(result, np.ndarray | np.generic) for result in found):
        return None
    return [np.asarray(result) for result in found]


def _alone(node: Node, inputs: Mapping[str | None, Value], opset: int) -> Model:
    """Return a model of one node."""
    copy = Node(
        node.domain,
        node.op_type,
        [inputs[v.name] if v is not None else None for v in node.inputs],
        list(node.attributes.values()),
        num_outputs=len(node.outputs),
        name="alone",
    )
    for mine, theirs in zip(copy.outputs, node.outputs, strict=True):
        mine.name = theirs.name
    ends = list(inputs.values()), list(copy.outputs)
    graph = Graph(*ends, nodes=[copy], opset_imports={"": opset}, name="fold")
    return Model(graph, ir_version=10)
