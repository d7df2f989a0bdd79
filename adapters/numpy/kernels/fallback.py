"""Operators that the NumPy graph does not have, run by onnx's reference evaluator.

They need onnx installed.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from octavo.adapters.numpy.graph import Graph, Node
from octavo.core.errors import MissingFramework, ModelError

from .casting import dtype_of
from .registry import Kernel, supported

REASON = "runs on onnx's reference evaluator: correct, slow, and not part of a standalone export"

_TYPES = ("to", "dtype", "output_dtype")
"""Attributes that name a type: ONNX numbers its types, a graph names them."""


def native(node: Node, opset: int) -> bool:
    """True if there is a kernel for the node, and for every node of its bodies."""
    if not supported(node.op, opset):
        return False
    bodies = [a for a in node.attributes.values() if isinstance(a, Graph)]
    return all(native(n, opset) for body in bodies for n in body.nodes)


def reference_kernel(node: Node, opset: int) -> Kernel:
    """Return a kernel that evaluates one node with onnx.

    Raises:
        MissingFramework: If onnx is not installed.
        ModelError: If onnx cannot evaluate it either.
    """
    try:
        from onnx import helper
    except ImportError as error:
        raise MissingFramework(
            f"node {node.name!r}: the NumPy backend has no operator {node.op!r}; with onnx "
            "installed it would run on the reference evaluator. pip install 'octavo[onnx]'"
        ) from error
    attributes = _attributes(node, helper)
    inputs = [f"i{i}" if v else "" for i, v in enumerate(node.inputs)]
    outputs = [f"o{i}" if v else "" for i, v in enumerate(node.outputs)]
    try:
        evaluator = _evaluator(node.op, opset, inputs, outputs, attributes)
    except Exception as error:  # onnx raises many kinds
        raise ModelError(
            f"node {node.name!r}: neither the NumPy backend nor onnx's reference evaluator runs "
            f"{node.op!r}: {error}"
        ) from error

    return partial(_evaluate, node, evaluator, inputs, outputs)


def _evaluate(
    node: Node, evaluator: Any, inputs: list[str], outputs: list[str], *values: Any
) -> Any:
    """Run onnx's evaluator of one node; names '' are what is left out."""
    pairs = zip(inputs, values, strict=True)
    given = {name: value for name, value in pairs if name}
    written = [name for name in outputs if name]
    try:
        results = dict(zip(written, evaluator.run(written, given), strict=True))
    except Exception as error:
        raise ModelError(
            f"node {node.name!r} ({node.op}) failed on onnx's reference evaluator: {error}"
        ) from error
    if len(outputs) == 1:
        return results[outputs[0]]
    return tuple(results.get(name) for name in outputs)


def _attributes(node: Node, helper: Any) -> dict[str, Any]:
    """Return a node's attributes as onnx takes them."""
    attributes: dict[str, Any] = {}
    for key, value in node.attributes.items():
        if isinstance(value, Graph):
            raise ModelError(
                f"node {node.name!r}: the NumPy backend has no operator {node.op!r}, and "
                "operators with bodies have no fallback"
            )
        if isinstance(value, str) and key in _TYPES:
            attributes[key] = helper.np_dtype_to_tensor_dtype(dtype_of(value))
        else:
            attributes[key] = list(value) if isinstance(value, tuple) else value
    return attributes


def _evaluator(
    name: str,
    opset: int,
    inputs: list[str],
    outputs: list[str],
    attributes: dict[str, Any],
) -> Any:
    """Return onnx's evaluator of a model of one node."""
    from onnx import ValueInfoProto, helper
    from onnx.reference import ReferenceEvaluator

    domain, _, op = name.rpartition(".")
    node = helper.make_node(op, inputs, outputs, domain=domain, **attributes)
    read = [ValueInfoProto(name=v) for v in inputs if v]
    written = [ValueInfoProto(name=v) for v in outputs if v]
    graph = helper.make_graph([node], "fallback", read, written)
    opsets = [helper.make_opsetid(domain, opset)]
    return ReferenceEvaluator(helper.make_model(graph, opset_imports=opsets))
