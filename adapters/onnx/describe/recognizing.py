"""Nodes recognized as operations of the neutral vocabulary."""

from __future__ import annotations

from collections.abc import Mapping

from onnx_ir import Node

from octavo.adapters.onnx.prepare.already_quantized import in_pairs
from octavo.adapters.onnx.prepare.constants import is_constant
from octavo.adapters.onnx.prepare.patterns import input_at, int_of, ints_of, rank_of
from octavo.core.values.graph import Attribute

from .carriers import carries
from .drafts import IN_PAIRS, Draft
from .fusing import fuse_activation
from .products import einsum_site, product_site
from .site import Site, is_float, is_non_float

_MOVING: Mapping[str, str] = {"MaxPool": "max_pool", "Resize": "resize"}

_PLAIN: Mapping[str, str] = {
    "Add": "add",
    "Mul": "mul",
    "Concat": "concat",
    "GlobalAveragePool": "avg_pool",
    "AveragePool": "avg_pool",
    "Softmax": "softmax",
    "Sigmoid": "sigmoid",
    "LeakyRelu": "leaky_relu",
    "Tanh": "tanh",
    "Relu": "relu",
    "Gelu": "gelu",
    "Erf": "erf",
    "LayerNormalization": "layer_norm",
    "BatchNormalization": "batch_norm",
    "Resize": "resize",
    "LSTM": "lstm",
    "GRU": "gru",
    "RNN": "rnn",
    "RMSNormalization": "rms_norm",
}


def recognize(node: Node, fused: set[Node]) -> Site | None:
    """Return the operation that a node is the main node of; None if it is none.

    Args:
        node: Of a prepared graph.
        fused: Nodes that are part of an operation already; what is fused here is added.
    """
    if node.domain not in ("", "ai.onnx") or not node.outputs:
        return None
    kind = node.op_type
    if kind in ("Conv", "ConvTranspose"):
        return _convolution(node, fused)
    if kind in ("MatMul", "Gemm"):
        return product_site(node, fused)
    if kind == "Gather":
        return _embedding(node)
    if kind == "Einsum":
        return einsum_site(node)
    if carries(node):
        return _carrier(node)
    return _plain(node, fused)


def _carrier(node: Node) -> Site | None:
    if not is_float(node.inputs[0]):
        return None
    kind = _MOVING.get(node.op_type, "reshape")
    return Draft(node, kind, (0,), why="it carries the codes of its input").site()


def _plain(node: Node, fused: set[Node]) -> Site | None:
    """Describe an op whose inputs are activations, most of them elementwise."""
    kind = _PLAIN.get(node.op_type)
    acts = _activations(node)
    if kind is None or not acts or is_non_float(node.outputs[0]):
        return None
    if node.op_type in ("LSTM", "GRU", "RNN"):
        return _recurrent(node, kind, acts)
    if in_pairs(node):
        return Draft(node, kind, acts, why=IN_PAIRS).site()
    if node.op_type not in ("Add", "Mul"):
        return Draft(node, kind, acts).site()
    if not is_float(node.outputs[0]):
        return None
    why = "" if len(acts) == 2 else "one side is a constant"
    last, activation = fuse_activation(node, fused)
    return Draft(node, kind, acts, last, activation=activation, why=why).site()


def _activations(node: Node) -> tuple[int, ...]:
    """Return the indices of the inputs that are no constants."""
    found = []
    for index, value in enumerate(node.inputs):
        if value is not None and not is_constant(value):
            found.append(index)
    return tuple(found)


def _recurrent(node: Node, kind: str, acts: tuple[int, ...]) -> Site:
    if not all(is_constant(v) for v in node.inputs[1:3]):
        stored = in_pairs(node, (1, 2))
        why = IN_PAIRS if stored else "its weights are computed at run time"
        return Draft(node, kind, acts, why=why).site()
    why = ""
    layout = int_of(node, "layout", 0)
    if node.op_type == "LSTM" and layout != 0:
        why = "the integer kernel takes steps first (layout 0)"
    # W and R: (directions, gates * hidden, features). Each row of a gate is an output channel.
    return Draft(
        node, kind, acts, weight=1, why=why, channel_axis=1, further=(2,)
    ).site()


def _convolution(node: Node, fused: set[Node]) -> Site:
    is_transposed = node.op_type == "ConvTranspose"
    kind = "conv_transpose" if is_transposed else "conv"
    if not is_constant(node.inputs[1]):
        # A weight that is dequantized is no constant, and yet known.
        stored = in_pairs(node, (1,))
        why = IN_PAIRS if stored else "its weight is computed at run time"
        return Draft(node, kind, (0,), why=why).site()
    bias = input_at(node, 2)
    is_computed = bias is not None and not is_constant(bias)
    last, activation = fuse_activation(node, fused)
    draft = Draft(
        node,
        kind,
        (0,),
        last,
        weight=1,
        bias=bias,
        activation=activation,
        why="its bias is not a constant" if is_computed else "",
        channel_axis=1 if is_transposed else 0,
        extra=_geometry(node),
    )
    return draft.site()


def _geometry(convolution: Node) -> dict[str, Attribute]:
    found: dict[str, Attribute] = {"groups": int_of(convolution, "group", 1)}
    for name in ("strides", "pads", "dilations"):
        given = ints_of(convolution, name)
        if given is not None:
            found[name] = tuple(given)
    return found


def _embedding(node: Node) -> Site | None:
    table = node.inputs[0]
    indices = node.inputs[1]
    if in_pairs(node, (0,)):
        return Draft(node, "embedding", (), why=IN_PAIRS).site()
    is_table = is_constant(table) and is_float(table)
    if not is_table or is_constant(indices):
        return None
    rank = rank_of(table) or 0
    if rank < 2:
        return None
    axis = int_of(node, "axis", 0)
    if axis != 0 or rank != 2:
        why = "how many axes its indices have is unknown"
        return Draft(node, "embedding", (), weight=0, why=why, channel_axis=axis).site()
    return Draft(node, "embedding", (), weight=0).site()
