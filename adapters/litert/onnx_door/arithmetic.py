"""Arithmetic element by element, activations, products of matrices."""

from __future__ import annotations

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from .building import Value, identity
from .folding import ACTIVATION, fold, fuse
from .layout import Conversion, Writer, permuted
from .reading import Node

BINARY = {
    "Add": ("ADD", schema.AddOptionsT),
    "Sum": ("ADD", schema.AddOptionsT),
    "Sub": ("SUB", schema.SubOptionsT),
    "Mul": ("MUL", schema.MulOptionsT),
    "Div": ("DIV", schema.DivOptionsT),
    "Max": ("MAXIMUM", schema.MaximumMinimumOptionsT),
    "Min": ("MINIMUM", schema.MaximumMinimumOptionsT),
    "Pow": ("POW", schema.PowOptionsT),
}
"""Kind of node -> operator, its options."""

UNARY = {
    "Sigmoid": "LOGISTIC",
    "Tanh": "TANH",
    "HardSwish": "HARD_SWISH",
    "Elu": "ELU",
    "Exp": "EXP",
    "Log": "LOG",
    "Sqrt": "SQRT",
    "Abs": "ABS",
    "Neg": "NEG",
}

CLIPS = {
    (0.0, np.inf): ("RELU", ACTIVATION.RELU),
    (0.0, 6.0): ("RELU6", ACTIVATION.RELU6),
    (-1.0, 1.0): ("RELU_N1_TO_1", ACTIVATION.RELU_N1_TO_1),
    (0.0, 1.0): ("RELU_0_TO_1", None),
}
"""Bounds -> the operator that clips to them, and its name where operators fuse it."""


def binary(state: Conversion, node: Node) -> None:
    """Add, Sub, Mul, Div, Pow of two values; Sum, Max and Min of one or more."""
    code, options = BINARY[node.kind]
    shape = state.graph.shape(node.outputs[0])
    if len(node.inputs) == 1:
        state.same(node, node.inputs[0], state.value(node.inputs[0]))
        return
    if len(node.inputs) == 2 and _folded(state, node):
        return
    order = state.common(node.inputs, len(shape))
    first, *between, last = (state.aligned(name, order) for name in node.inputs)
    for operand in between:
        stored = permuted(shape, order)
        first = state.step(node, code, [first, operand], stored, options())
    state.emit(node, code, [first, last], order, options())


def _folded(state: Conversion, node: Node) -> bool:
    """Fold a sum with, or a product by, a number for each channel into the product before."""
    first, second = (state.constant(name) for name in node.inputs)
    constant = second if first is None else first
    name = node.inputs[0] if first is None else node.inputs[1]
    is_reversed = first is not None and node.kind in ("Sub", "Div")
    if constant is None or is_reversed or node.kind in ("Pow", "Max", "Min"):
        return False
    channels = _by_channel(state.value(name), constant)
    if channels is None or channels.dtype.kind != "f":
        return False
    if state.graph.shape(node.outputs[0]) != state.value(name).shape:
        return False
    one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)
    factor, offset = one, zero
    if node.kind == "Mul":
        factor = channels
    elif node.kind == "Div":
        factor = one / channels
    else:
        offset = -channels if node.kind == "Sub" else channels
    return fold(state, node, name, factor, offset)


def _by_channel(value: Value, constant: np.ndarray) -> np.ndarray | None:
    """Return a constant as one number or one for each channel of a stored value; None if it is
    not."""
    rank = len(value.shape)
    if constant.ndim > rank:
        return None
    wide = constant.reshape((1,) * (rank - constant.ndim) + constant.shape)
    stored = wide.transpose(value.natural)
    others = stored.shape[:-1]
    return stored.reshape(-1) if all(size == 1 for size in others) else None


def unary(state: Conversion, node: Node) -> None:
    """Functions of one number, element by element."""
    order = state.value(node.inputs[0]).natural
    x = state.tensor(node.inputs[0], order)
    state.emit(node, UNARY[node.kind], [x], order)


def gelu(state: Conversion, node: Node) -> None:
    """Gelu, exact or by tanh."""
    options = schema.GeluOptionsT()
    options.approximate = node.attributes.get("approximate", "none") == "tanh"
    order = state.value(node.inputs[0]).natural
    state.emit(node, "GELU", [state.tensor(node.inputs[0], order)], order, options)


def leaky(state: Conversion, node: Node) -> None:
    """LeakyRelu."""
    options = schema.LeakyReluOptionsT()
    options.alpha = node.attributes.get("alpha", 0.01)
    order = state.value(node.inputs[0]).natural
    x = state.tensor(node.inputs[0], order)
    state.emit(node, "LEAKY_RELU", [x], order, options)


def slope(state: Conversion, node: Node) -> None:
    """PRelu: another slope for each channel."""
    rank = len(state.graph.shape(node.outputs[0]))
    order = state.common(node.inputs[:1], rank)
    pair = [state.aligned(name, order) for name in node.inputs]
    state.emit(node, "PRELU", pair, order)


def clip(state: Conversion, node: Node) -> None:
    """Relu and Clip: fused into the operator before, or one of LiteRT's, or two."""
    low, high = 0.0, np.inf
    if node.kind == "Clip":
        low = _bound(state, node, "min", 1, -np.inf)
        high = _bound(state, node, "max", 2, np.inf)
    code, fused = CLIPS.get((low, high), ("", None))
    if fused is not None and fuse(state, node, fused):
        return
    order = state.value(node.inputs[0]).natural
    x = state.tensor(node.inputs[0], order)
    if code:
        state.emit(node, code, [x], order)
        return
    options = schema.MaximumMinimumOptionsT
    shape = permuted(state.value(node.inputs[0]).shape, order)
    if np.isfinite(low):
        x = state.step(node, "MAXIMUM", [x, state.number(low)], shape, options())
    state.emit(node, "MINIMUM", [x, state.number(high)], order, options())


def _bound(
    state: Conversion, node: Node, attribute: str, index: int, default: float
) -> float:
    known = state.known(node, attribute, index)
    return default if known is None else float(known[0])


def hard_sigmoid(state: Conversion, node: Node) -> None:
    """HardSigmoid: max(0, min(1, alpha x + beta)), by ONNX's specification."""
    order = state.value(node.inputs[0]).natural
    shape = permuted(state.value(node.inputs[0]).shape, order)
    alpha = state.number(node.attributes.get("alpha", 0.2))
    beta = state.number(node.attributes.get("beta", 0.5))
    x = state.tensor(node.inputs[0], order)
    product = state.step(node, "MUL", [x, alpha], shape, schema.MulOptionsT())
    total = state.step(node, "ADD", [product, beta], shape, schema.AddOptionsT())
    state.emit(node, "RELU_0_TO_1", [total], order)


def gemm(state: Conversion, node: Node) -> None:
    """Gemm with a constant second matrix: alpha A B + beta C."""
    given = node.attributes
    weight, bias = state.constant(node.inputs[1]), np.zeros(1, np.float32)
    if weight is None or given.get("transA"):
        raise node.refused("LiteRT has it for a constant second matrix")
    if node.given(2):
        stored = state.constant(node.inputs[2])
        if stored is None or stored.size not in (1, stored.shape[-1]):
            raise node.refused("its third input must be a constant row")
        bias = stored.reshape(-1)
    rows = weight if given.get("transB") else weight.T
    scaled = rows * np.float32(given.get("alpha", 1.0))
    _linear(state, node, scaled, bias * np.float32(given.get("beta", 1.0)))


def matmul(state: Conversion, node: Node) -> None:
    """MatMul: a linear layer where the second matrix is constant, else of two activations."""
    weight = state.constant(node.inputs[1])
    if weight is not None and weight.ndim == 2:
        _linear(state, node, weight.T, np.zeros(1, np.float32))
        return
    if min(len(state.value(name).shape) for name in node.inputs) < 2:
        raise node.refused("LiteRT has it for matrices, and not for vectors")
    pair = [state.tensor(name) for name in node.inputs]
    state.emit(node, "BATCH_MATMUL", pair, options=schema.BatchMatMulOptionsT())


def _linear(state: Conversion, node: Node, rows: np.ndarray, bias: np.ndarray) -> None:
    """Write FULLY_CONNECTED: weights (outputs, inputs), a bias that what follows may fold into."""
    value = state.value(node.inputs[0])
    image = value.image
    x: int
    if image is not None and image.natural != identity(4):
        # The image was flattened: its channels are taken as they lie, the weights' columns follow.
        order = image.natural
        sizes = image.shape[1:]
        columns = rows.reshape(-1, *sizes).transpose(0, *order[1:])
        rows = columns.reshape(len(rows), -1)
        stored = image.held[order]
        x = state.reshaped(stored, f"{node.name}/flat", value.shape, value.dtype)
    else:
        x = state.tensor(node.inputs[0])
    options = schema.FullyConnectedOptionsT()
    options.keepNumDims = True
    wide = np.broadcast_to(bias, len(rows)).astype(np.float32)
    arrays = (rows.astype(np.float32), wide)
    titles = (node.inputs[1], node.given(2) or f"{node.name}/bias")
    constants = [
        state.builder.constant(*two) for two in zip(titles, arrays, strict=True)
    ]
    state.emit(node, "FULLY_CONNECTED", [x, *constants], options=options)


WRITERS: dict[str, Writer] = {
    **dict.fromkeys(BINARY, binary),
    **dict.fromkeys(UNARY, unary),
    "Relu": clip,
    "Clip": clip,
    "Gelu": gelu,
    "LeakyRelu": leaky,
    "PRelu": slope,
    "HardSigmoid": hard_sigmoid,
    "Gemm": gemm,
    "MatMul": matmul,
}
