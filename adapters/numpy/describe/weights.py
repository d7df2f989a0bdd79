"""Which constant is an op's weight, and why some are out of reach of integer arithmetic."""

from __future__ import annotations

from octavo.adapters.numpy.graph import Graph, Node

_FLOATS = ("float32", "float16", "bfloat16")
_RECURRENT = ("LSTM", "GRU", "RNN")


def weight_of(graph: Graph, node: Node) -> str:
    """Return the name of a node's weight, or ''."""
    constants = graph.initializers
    if node.op in ("Gemm", "Conv", "ConvTranspose") and node.inputs[1] in constants:
        return node.inputs[1]
    if node.op == "Gather":
        table = constants.get(node.inputs[0])
        return node.inputs[0] if table is not None and table.ndim == 2 else ""
    return ""


def bias_of(graph: Graph, node: Node) -> str | None:
    """Return the name of a node's constant bias, or None."""
    name = node.input(2) if node.op in ("Gemm", "Conv") else ""
    return name if name in graph.initializers else None


def channel_axis(node: Node) -> int:
    """Return the axis of a weight's output channels."""
    if node.op == "Gemm":
        return 0 if node.get("transB", 0) else 1
    return 1 if node.op == "ConvTranspose" else 0


def why_out_of_reach(graph: Graph, node: Node) -> str:
    """Return why no integer kernel takes an op of a type that has one, '' where one does."""
    if node.op in _RECURRENT:
        return "the NumPy backend has no integer kernel for recurrent layers"
    if node.op not in ("Gemm", "Conv"):
        return ""
    weight = graph.initializers.get(node.inputs[1])
    if weight is None:
        return "its weight is computed at run time"
    if weight.dtype.name not in _FLOATS:
        return f"its weight is {weight.dtype}"
    bias = bias_of(graph, node)
    if node.input(2) and bias is None:
        return "its bias is computed at run time"
    if node.op == "Conv":
        return ""
    if (
        node.get("transA", 0)
        or node.get("alpha", 1.0) != 1.0
        or node.get("beta", 1.0) != 1.0
    ):
        return "it is a Gemm with transA, alpha or beta"
    if bias is not None and graph.initializers[bias].ndim != 1:
        return "its bias is no vector"
    return ""
