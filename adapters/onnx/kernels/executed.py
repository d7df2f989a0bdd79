"""Which kernels run each op: read from the graph that ONNX Runtime executes, and never assumed."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence

import onnx

from octavo.adapters.onnx.apply.nodes import Emitted

INTEGER_KERNELS = frozenset(
    {
        "QLinearConv", "QLinearConvTranspose", "QLinearMatMul", "QGemm", "MatMulIntegerToFloat",
        "MatMulInteger", "DynamicQuantizeMatMul", "ConvInteger", "QLinearAdd", "QLinearMul",
        "QLinearConcat", "QLinearGlobalAveragePool", "QLinearAveragePool", "QLinearSigmoid",
        "QLinearLeakyRelu", "QLinearSoftmax", "QLinearReduceMean", "DynamicQuantizeLSTM",
        "QAttention", "MatMulNBits", "GatherBlockQuantized",
    }
)  # fmt: skip
"""Op types whose CPU kernels compute on integers, or on packed weights block by block."""

_FLOAT_RESULTS = frozenset(
    {
        "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "MatMulNBits",
        "GatherBlockQuantized", "QAttention",
    }
)  # fmt: skip
"""Integer kernels whose results are float."""

_PUTS_OUT_CODES = ("QuantizeLinear", "ConvInteger", "MatMulInteger")
"""Op types whose results are integers, whatever is said of their kernels above."""

_TOKEN = re.compile(r"(_token_\d+)+$")
"""What ONNX Runtime appends to a node's name where it changes the node's layout."""

_INSERTED = "InsertedPrecisionFreeCast_"
"""How ONNX Runtime names the values around a node that it computes in float32.

It does so where it has no half-precision kernel.
"""


def low_precision_kernels(
    nodes: Iterable[onnx.NodeProto], emitted: Mapping[str, Emitted]
) -> dict[str, str]:
    """Return op name -> kernel for every op that runs on an integer or half-precision one.

    Args:
        nodes: The optimized graph's nodes. Fused nodes keep the main node's name, with
            ``_token_N`` appended by layout changes.
        emitted: What was written for each op.
    """
    wanted = {e.node: op for op, e in emitted.items()}
    found: dict[str, str] = {}
    for node in nodes:
        op = wanted.get(node.name) or wanted.get(plain_name(node))
        if op is None:
            continue
        half = emitted[op].half
        if half and _runs_in_half(node):
            found[op] = f"{node.op_type} in {half}"
        elif not half and node.op_type in INTEGER_KERNELS:
            found[op] = node.op_type
    return found


def plain_name(node: onnx.NodeProto) -> str:
    """Return a node's name as it was before ONNX Runtime changed the node's layout."""
    return _TOKEN.sub("", node.name)


def _runs_in_half(node: onnx.NodeProto) -> bool:
    """True if a node has no Cast of ONNX Runtime's own making around it."""
    around = (*node.input, *node.output)
    return not any(name.startswith(_INSERTED) for name in around)


def given_codes(
    nodes: Sequence[onnx.NodeProto], wanted: Collection[str | None]
) -> frozenset[str]:
    """Return those of some nodes whose first input is codes in an optimized graph.

    Args:
        nodes: The optimized graph's nodes.
        wanted: Names of nodes that move the values of their first input: a chain of them is
            followed to its beginning.
    """
    makers = {value: node for node in nodes for value in node.output}
    found = set()
    for node in nodes:
        name = plain_name(node)
        if name not in wanted or not node.input:
            continue
        if _is_codes(makers, node.input[0], wanted):
            found.add(name)
    return frozenset(found)


def _is_codes(
    makers: Mapping[str, onnx.NodeProto], value: str, wanted: Collection[str | None]
) -> bool:
    node = makers.get(value)
    while node is not None and node.input and _moves(node, wanted):
        node = makers.get(node.input[0])
    if node is None:
        return False
    is_integer = node.op_type in INTEGER_KERNELS and node.op_type not in _FLOAT_RESULTS
    return is_integer or node.op_type in _PUTS_OUT_CODES


def _moves(node: onnx.NodeProto, wanted: Collection[str | None]) -> bool:
    # Transpose and Reshape: the runtime's layout changes insert some under names of their own.
    return plain_name(node) in wanted or node.op_type in ("Transpose", "Reshape")
