"""Operators that the NumPy graph does not have itself, run by onnx's reference evaluator where onnx is installed."""

from __future__ import annotations

from typing import Any

from octavo.adapters.numpy.graph import Graph, Node
from octavo.core.errors import MissingFramework, ModelError

from .casting import dtype_of
from .registry import Kernel, supported

REASON = "runs on onnx's reference evaluator: correct, slow, and not part of a standalone export"


def native(node: Node, opset: int) -> bool:
    """True if the NumPy backend has a kernel of its own for the node, and for every node of its bodies."""
    bodies = [a for a in node.attributes.values() if isinstance(a, Graph)]
    return supported(node.op, opset) and all(native(n, opset) for b in bodies for n in b.nodes)


def reference_kernel(node: Node, opset: int) -> Kernel:
    """Return a kernel that evaluates one node with onnx.

    Raises:
        MissingFramework: If onnx is not installed.
        ModelError: If onnx cannot evaluate it either.
    """
    try:
        from onnx import ValueInfoProto, helper
        from onnx.reference import ReferenceEvaluator
    except ImportError as error:
        raise MissingFramework(
            f"node {node.name!r}: the NumPy backend has no operator {node.op!r}; with onnx installed it would run on the reference evaluator. "
            "pip install 'octavo[onnx]'"
        ) from error
    domain, _, op = node.op.rpartition(".")
    attributes: dict[str, Any] = {}
    for key, value in node.attributes.items():
        if isinstance(value, Graph):
            raise ModelError(
                f"node {node.name!r}: the NumPy backend has no operator {node.op!r}, and operators with bodies have no fallback"
            )
        if isinstance(value, str) and key in ("to", "dtype", "output_dtype"):
            attributes[key] = helper.np_dtype_to_tensor_dtype(dtype_of(value))
        else:
            attributes[key] = list(value) if isinstance(value, tuple) else value
    inputs = [f"i{i}" if v else "" for i, v in enumerate(node.inputs)]
    outputs = [f"o{i}" if v else "" for i, v in enumerate(node.outputs)]
    named_in, named_out = [v for v in inputs if v], [v for v in outputs if v]
    try:
        proto = helper.make_node(op, inputs, outputs, domain=domain, **attributes)
        given_infos, made_infos = (
            [ValueInfoProto(name=v) for v in names] for names in (named_in, named_out)
        )
        graph = helper.make_graph([proto], "fallback", given_infos, made_infos)
        evaluator = ReferenceEvaluator(
            helper.make_model(graph, opset_imports=[helper.make_opsetid(domain, opset)])
        )
    except Exception as error:  # onnx raises many kinds
        raise ModelError(
            f"node {node.name!r}: neither the NumPy backend nor onnx's reference evaluator runs {node.op!r}: {error}"
        ) from error

    def run(*values: Any) -> Any:
        given = {name: value for name, value in zip(inputs, values, strict=True) if name}
        try:
            results = dict(zip(named_out, evaluator.run(named_out, given), strict=True))
        except Exception as error:
            raise ModelError(
                f"node {node.name!r} ({node.op}) failed on onnx's reference evaluator: {error}"
            ) from error
        return tuple(results.get(v) for v in outputs) if len(outputs) > 1 else results[outputs[0]]

    return run
