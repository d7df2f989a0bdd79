"""What of a model is quantized already, by whom it may be: it is left as it is, and said.

Three forms: QuantizeLinear and DequantizeLinear around float operators, operators on integers, and operators of
com.microsoft on packed weights. What is float beside them can still be tuned.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import onnx_ir as ir

from .scopes import walk

ALREADY = "already quantized"

_MEANS: Mapping[str, str] = {
    "QLinearConv": "Conv", "ConvInteger": "Conv", "QLinearMatMul": "MatMul", "MatMulInteger": "MatMul", "QGemm": "Gemm",
    "MatMulIntegerToFloat": "MatMul", "DynamicQuantizeMatMul": "MatMul", "MatMulInteger16": "MatMul", "MatMulNBits": "MatMul",
    "MatMulBnb4": "MatMul", "MatMulFpQ4": "MatMul", "DynamicQuantizeLSTM": "LSTM", "QAttention": "Attention",
    "GatherBlockQuantized": "Gather", "QOrderedMatMul": "MatMul", "QOrderedAttention": "Attention", "QMoE": "MoE",
    "QEmbedLayerNormalization": "EmbedLayerNormalization", "QLinearConvTranspose": "ConvTranspose",
}  # fmt: skip
"""Operator on integers or packed weights -> the float operator that it stands for."""

_WEIGHTED: Mapping[str, tuple[int, ...]] = {
    "Conv": (1,), "ConvTranspose": (1,), "MatMul": (0, 1), "Gemm": (0, 1), "Gather": (0,), "LSTM": (1, 2), "GRU": (1, 2), "RNN": (1, 2),
    "Attention": (1,),
}  # fmt: skip
"""Float operator -> where its weight may stand."""

_PAIR = frozenset({"QuantizeLinear", "DequantizeLinear"})
_MOVERS = frozenset(
    {
        "Reshape",
        "Transpose",
        "Flatten",
        "Squeeze",
        "Unsqueeze",
        "MaxPool",
        "Identity",
        "Slice",
        "Gather",
        "Cast",
    }
)
_FUSED = frozenset({"Relu", "Clip"})


def dequantized(value: ir.Value | None) -> ir.Node | None:
    """Return the DequantizeLinear that a value comes from, past operators that only move values."""
    node = value.producer() if value is not None else None
    while node is not None and node.op_type in _MOVERS and node.inputs:
        first = node.inputs[0]
        node = first.producer() if first is not None else None
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def in_pairs(node: ir.Node, weight: Iterable[int] = ()) -> bool:
    """True if a float operator stands between DequantizeLinear and QuantizeLinear, or reads a weight that is stored in codes.

    Args:
        node: The operator.
        weight: Indices of the inputs that its weight may stand at; none for an operator without one.
    """
    places = tuple(weight)
    if places:
        return any(i < len(node.inputs) and _stored(node.inputs[i]) for i in places) or _between(
            node
        )
    return _between(node)


def _stored(value: ir.Value | None) -> bool:
    """True if a value is a constant in codes (or one that the model itself quantizes), written back to float."""
    node = dequantized(value)
    codes = node.inputs[0] if node is not None else None
    if codes is None:
        return False
    written = codes.producer()
    if written is not None and written.op_type == "QuantizeLinear":
        codes = written.inputs[0]
    return codes is not None and codes.is_initializer()


def _between(node: ir.Node) -> bool:
    read = [v for v in node.inputs if v is not None and not v.is_initializer()]
    if (
        not read
        or not all(dequantized(v) is not None for v in read)
        or any(v.is_initializer() and _wide(v) for v in node.inputs if v)
    ):
        return False
    readers = [user for output in node.outputs for user, _ in output.uses()]
    if len(readers) == 1 and readers[0].op_type in _FUSED:
        readers = [user for output in readers[0].outputs for user, _ in output.uses()]
    return bool(readers) and all(user.op_type == "QuantizeLinear" for user in readers)


def _wide(value: ir.Value) -> bool:
    held = value.const_value
    return held is not None and len(held.shape) >= 2 and held.dtype.is_floating_point()


def describe(graph: ir.Graph) -> str:
    """Return one line on what of a model is quantized already; empty if nothing is."""
    done: dict[str, Counter[str]] = {}
    left: Counter[str] = Counter()
    for node in walk(graph):
        if node.op_type in _MEANS:
            done.setdefault(_MEANS[node.op_type], Counter())[_integer_form(node)] += 1
        elif node.op_type in _WEIGHTED and node.domain in ("", "com.microsoft"):
            places = [node.inputs[i] for i in _WEIGHTED[node.op_type] if i < len(node.inputs)]
            if any(_stored(v) for v in places):
                done.setdefault(node.op_type, Counter())[_pair_form(places)] += 1
            elif any(v is not None and v.is_initializer() and _wide(v) for v in places):
                left[node.op_type] += 1
    if not done:
        pairs = sum(node.op_type in _PAIR for node in walk(graph))
        return (
            f"{ALREADY}: {pairs} QuantizeLinear and DequantizeLinear around operators without weights"
            if pairs
            else ""
        )
    told = []
    for kind, forms in done.items():
        total = forms.total() + left[kind]
        told += [f"{number} of {total} {kind} {form}" for form, number in forms.items()]
    rest = sum(left.values())
    still = (
        f"{rest} operators with float weights can still be tuned"
        if rest
        else "no operator with a float weight is left to tune"
    )
    return f"{ALREADY}: {', '.join(told)}; {still}"


def _integer_form(node: ir.Node) -> str:
    if "bits" in node.attributes:
        return f"in int{node.attributes['bits'].as_int()} by {node.op_type}"
    if node.op_type in ("MatMulNBits", "MatMulBnb4", "MatMulFpQ4", "GatherBlockQuantized"):
        return f"in int4 by {node.op_type}"
    return f"in int8 by {node.op_type}"


def _pair_form(places: Iterable[ir.Value | None]) -> str:
    for value in places:
        node = dequantized(value)
        codes = node.inputs[0] if node is not None else None
        if codes is not None:
            dtype = codes.dtype.name.lower() if codes.dtype is not None else "int8"
            return f"in {dtype} by QDQ"
    return "by QDQ"
