"""What of a model is quantized already, by whom it may be: it is left as it is, and said.

Three forms: QuantizeLinear and DequantizeLinear around float operators, operators on integers, and
operators of com.microsoft on packed weights. What is float beside them can still be tuned.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from onnx_ir import Graph, Node, Value

from .patterns import input_at, producer_at, producer_of
from .scopes import walk

ALREADY = "already quantized"

_MEANS: Mapping[str, str] = {
    "QLinearConv": "Conv",
    "ConvInteger": "Conv",
    "QLinearConvTranspose": "ConvTranspose",
    "QLinearMatMul": "MatMul",
    "MatMulInteger": "MatMul",
    "MatMulInteger16": "MatMul",
    "MatMulIntegerToFloat": "MatMul",
    "DynamicQuantizeMatMul": "MatMul",
    "MatMulNBits": "MatMul",
    "MatMulBnb4": "MatMul",
    "MatMulFpQ4": "MatMul",
    "QOrderedMatMul": "MatMul",
    "QGemm": "Gemm",
    "DynamicQuantizeLSTM": "LSTM",
    "QAttention": "Attention",
    "QOrderedAttention": "Attention",
    "GatherBlockQuantized": "Gather",
    "QMoE": "MoE",
    "QEmbedLayerNormalization": "EmbedLayerNormalization",
}
"""Operator on integers or packed weights -> the float operator that it stands for."""

_WEIGHTED: Mapping[str, tuple[int, ...]] = {
    "Conv": (1,),
    "ConvTranspose": (1,),
    "MatMul": (0, 1),
    "Gemm": (0, 1),
    "Gather": (0,),
    "LSTM": (1, 2),
    "GRU": (1, 2),
    "RNN": (1, 2),
    "Attention": (1,),
}
"""Float operator -> where its weight may stand."""

_FOUR_BITS = ("MatMulNBits", "MatMulBnb4", "MatMulFpQ4", "GatherBlockQuantized")
"""Operators on weights of 4 bits, where they do not say of how many."""

_PAIR = frozenset({"QuantizeLinear", "DequantizeLinear"})
_MOVERS = frozenset(
    {
        "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "MaxPool", "Identity", "Slice",
        "Gather", "Cast",
    }
)  # fmt: skip
_FUSED = frozenset({"Relu", "Clip"})


def dequantized(value: Value | None) -> Node | None:
    """Return the DequantizeLinear that a value comes from, past operators that only move values."""
    node = producer_of(value)
    while node is not None and node.op_type in _MOVERS and node.inputs:
        node = producer_at(node, 0)
    if node is not None and node.op_type == "DequantizeLinear":
        return node
    return None


def in_pairs(node: Node, weight: Iterable[int] = ()) -> bool:
    """True if a float operator stands between DequantizeLinear and QuantizeLinear.

    Also if it reads a weight that is stored in codes.

    Args:
        node: The operator.
        weight: Indices of the inputs that its weight may stand at; none for an operator without
            one.
    """
    for index in weight:
        if _is_stored(input_at(node, index)):
            return True
    return _stands_between(node)


def _is_stored(value: Value | None) -> bool:
    """True if a value is a constant in codes, written back to float.

    Or one that the model itself quantizes.
    """
    node = dequantized(value)
    if node is None:
        return False
    codes = node.inputs[0]
    written = producer_of(codes)
    if written is not None and written.op_type == "QuantizeLinear":
        codes = written.inputs[0]
    return codes is not None and codes.is_initializer()


def _stands_between(node: Node) -> bool:
    """True if an operator reads what is dequantized alone, and what it writes is quantized."""
    given = [v for v in node.inputs if v is not None]
    if any(_is_float_weight(v) for v in given):
        return False
    read = [v for v in given if not v.is_initializer()]
    if not read or any(dequantized(v) is None for v in read):
        return False
    readers = _readers(node)
    if len(readers) == 1 and readers[0].op_type in _FUSED:
        readers = _readers(readers[0])
    if not readers:
        return False
    return all(user.op_type == "QuantizeLinear" for user in readers)


def _readers(node: Node) -> list[Node]:
    return [user for output in node.outputs for user, _ in output.uses()]


def _is_float_weight(value: Value | None) -> bool:
    """True for a floating constant of two or more dimensions."""
    if value is None or not value.is_initializer():
        return False
    held = value.const_value
    if held is None or len(held.shape) < 2:
        return False
    return held.dtype.is_floating_point()


def describe(graph: Graph) -> str:
    """Return one line on what of a model is quantized already; empty if nothing is."""
    done: dict[str, Counter[str]] = {}
    left: Counter[str] = Counter()
    for node in walk(graph):
        kind, form = _form(node)
        if form:
            forms = done.setdefault(kind, Counter())
            forms[form] += 1
        elif kind:
            left[kind] += 1
    if done:
        return _told(done, left)
    return _told_of_pairs(graph)


def _form(node: Node) -> tuple[str, str]:
    """Return the float operator that a node stands for, and how it is quantized.

    The form is empty where its weight is float; both are where it has none.
    """
    kind = node.op_type
    if kind in _MEANS:
        return _MEANS[kind], _integer_form(node)
    if kind not in _WEIGHTED or node.domain not in ("", "com.microsoft"):
        return "", ""
    places = [input_at(node, index) for index in _WEIGHTED[kind]]
    if any(_is_stored(value) for value in places):
        return kind, _pair_form(places)
    if any(_is_float_weight(value) for value in places):
        return kind, ""
    return "", ""


def _told(done: Mapping[str, Counter[str]], left: Counter[str]) -> str:
    told = []
    for kind, forms in done.items():
        total = forms.total() + left[kind]
        told += [f"{number} of {total} {kind} {form}" for form, number in forms.items()]
    still = "no operator with a float weight is left to tune"
    if left.total():
        still = f"{left.total()} operators with float weights can still be tuned"
    return f"{ALREADY}: {', '.join(told)}; {still}"


def _told_of_pairs(graph: Graph) -> str:
    pairs = sum(node.op_type in _PAIR for node in walk(graph))
    if not pairs:
        return ""
    around = "QuantizeLinear and DequantizeLinear around operators without weights"
    return f"{ALREADY}: {pairs} {around}"


def _integer_form(node: Node) -> str:
    bits = 4 if node.op_type in _FOUR_BITS else 8
    if "bits" in node.attributes:
        bits = node.attributes["bits"].as_int()
    return f"in int{bits} by {node.op_type}"


def _pair_form(places: Iterable[Value | None]) -> str:
    for value in places:
        node = dequantized(value)
        codes = node.inputs[0] if node is not None else None
        if codes is not None:
            dtype = "int8"
            if codes.dtype is not None:
                dtype = codes.dtype.name.lower()
            return f"in {dtype} by QDQ"
    return "by QDQ"
