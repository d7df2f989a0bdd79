"""What stands around a convolution becomes part of it: batch norm, scales and biases after it, zero padding before it.

Frameworks write these apart (a batch norm of its own, TensorFlow's BiasAdd and explicit Pad); between integer convolutions
each would cost a way back to float.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from octavo.adapters.onnx.prepare.constants import (
    add_initializer,
    constant,
    is_constant,
    replace_input,
    take_over,
)


def fold_batch_norm(node: ir.Node) -> bool:
    """Fold a BatchNormalization into the Conv or ConvTranspose before it: y = (conv(x) - mean) * gamma / sqrt(var + eps) + beta."""
    training = node.attributes.get("training_mode")
    if (
        len(node.inputs) < 5
        or (training is not None and training.as_int())
        or any(o.uses() for o in node.outputs[1:])
    ):
        return False
    scale, shift, mean, variance = (constant(v) for v in node.inputs[1:5])
    if (
        scale is None
        or shift is None
        or mean is None
        or variance is None
        or not np.isfinite(variance).all()
    ):
        return False
    epsilon = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5
    factor = scale.astype(np.float64) / np.sqrt(variance.astype(np.float64) + epsilon)
    return _absorb(node, node.inputs[0], factor, shift - mean * factor)


def fold_affine(node: ir.Node) -> bool:
    """Fold an Add or Mul of one number per channel into the Conv or ConvTranspose before it."""
    index = next((i for i, v in enumerate(node.inputs) if is_constant(v)), None)
    if index is None or len(node.inputs) != 2:
        return False
    held, x = constant(node.inputs[index]), node.inputs[1 - index]
    source = x.producer() if x is not None else None
    weight = source.inputs[1] if source is not None and len(source.inputs) > 1 else None
    if held is None or weight is None or weight.shape is None or held.ndim > len(weight.shape):
        return False
    shape = (1,) * (len(weight.shape) - held.ndim) + held.shape
    if any(n != 1 for axis, n in enumerate(shape) if axis != 1):
        return False
    number = held.ravel().astype(np.float64)
    return (
        _absorb(node, x, number, np.zeros(1))
        if node.op_type == "Mul"
        else _absorb(node, x, np.ones(1), number)
    )


def _absorb(node: ir.Node, x: ir.Value | None, factor: np.ndarray, shift: np.ndarray) -> bool:
    """Let a convolution whose only reader is ``node`` compute ``factor * conv(x) + shift``, one number per channel."""
    source, graph = x.producer() if x is not None else None, node.graph
    if (
        source is None
        or source.op_type not in ("Conv", "ConvTranspose")
        or source.domain != ""
        or not isinstance(graph, ir.Graph)
    ):
        return False
    middle = source.outputs[0]
    if len(middle.uses()) != 1 or middle.is_graph_output() or source.graph is not graph:
        return False
    weight = constant(source.inputs[1]) if len(source.inputs) > 1 else None
    has_bias = len(source.inputs) > 2 and source.inputs[2] is not None
    bias = constant(source.inputs[2]) if has_bias else np.float32(0.0)
    if (
        weight is None
        or bias is None
        or not all(np.isfinite(a).all() for a in (factor, shift, weight, bias))
    ):
        return False  # what is not finite keeps its name
    groups = source.attributes["group"].as_int() if "group" in source.attributes else 1
    channels = weight.shape[0] if source.op_type == "Conv" else weight.shape[1] * groups
    if factor.size not in (1, channels) or shift.size not in (1, channels):
        return False
    factor = np.broadcast_to(factor, channels)
    if source.op_type == "Conv":
        folded = weight * factor.reshape(-1, *(1,) * (weight.ndim - 1))
    else:  # ConvTranspose weights are (inputs, outputs / groups, ...)
        per_group = np.repeat(
            factor.reshape(groups, 1, -1), weight.shape[0] // groups, axis=1
        ).reshape(weight.shape[0], weight.shape[1])
        folded = weight * per_group.reshape(*weight.shape[:2], *(1,) * (weight.ndim - 2))
    old = source.inputs[1]
    assert old is not None
    name = old.name or "weight"
    if np.any(factor != 1):
        replace_input(
            source, 1, add_initializer(graph, f"{name}_folded", folded.astype(weight.dtype))
        )
    moved = np.broadcast_to(bias, channels).astype(np.float64) * factor + shift
    replace_input(
        source, 2, add_initializer(graph, f"{name}_bias_folded", moved.astype(weight.dtype))
    )
    take_over(middle, node.outputs[0])
    graph.remove(node, safe=True)
    return True


def fold_pad(node: ir.Node) -> bool:
    """Let a Conv pad with zeros by itself where a Pad before it does."""
    before = node.inputs[0].producer() if node.inputs[0] is not None else None
    if (
        before is None
        or before.op_type != "Pad"
        or before.domain != ""
        or _text(before, "mode", "constant") != "constant"
    ):
        return False
    pads, value = (
        constant(before.inputs[1]),
        constant(before.inputs[2]) if len(before.inputs) > 2 else None,
    )
    given = len(before.inputs) > 2 and before.inputs[2] is not None
    if (
        pads is None
        or any(v is not None for v in before.inputs[3:])
        or (given and (value is None or np.any(value != 0)))
    ):
        return False
    begin, end = (half.astype(int).tolist() for half in np.split(pads, 2))
    if (
        any(begin[:2] + end[:2])
        or min(begin + end) < 0
        or _text(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    ):
        return False
    own = (
        list(node.attributes["pads"].as_ints())
        if "pads" in node.attributes
        else [0] * (2 * len(begin) - 4)
    )
    node.attributes["pads"] = ir.AttrInt64s(
        "pads", [a + b for a, b in zip(own, begin[2:] + end[2:], strict=True)]
    )
    node.attributes.pop("auto_pad", None)
    node.replace_input_with(0, before.inputs[0])
    return True


def _text(node: ir.Node, name: str, default: str) -> str:
    return node.attributes[name].as_string() if name in node.attributes else default
