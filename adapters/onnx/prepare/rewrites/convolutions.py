"""What stands around a convolution becomes part of it: batch norm, scales, biases, zero padding.

Frameworks write these apart (a batch norm of its own, TensorFlow's BiasAdd and explicit Pad);
between integer convolutions each would cost a way back to float.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeGuard

import numpy as np
import onnx_ir as ir
from onnx_ir import Graph, Node, Value

from octavo.adapters.onnx.prepare.constants import (
    add_initializer,
    constant,
    is_constant,
    replace_input,
    take_over,
)
from octavo.adapters.onnx.prepare.folded_norms import (
    FoldedNorm,
    folded_norm,
    keep_folded_norm,
)
from octavo.adapters.onnx.prepare.patterns import (
    float_of,
    input_at,
    int_of,
    ints_of,
    is_standard,
    only_use,
    producer_at,
    producer_of,
    text_of,
)


def fold_batch_norm(node: Node) -> bool:
    """Fold a BatchNormalization into the Conv, ConvTranspose or Gemm before it.

    ``y = (conv(x) - mean) * gamma / sqrt(var + eps) + beta``. What it said of its output is kept
    (:mod:`..folded_norms`).
    """
    if len(node.inputs) < 5 or int_of(node, "training_mode", 0):
        return False
    if any(output.uses() for output in node.outputs[1:]):
        return False
    scale, shift, mean, variance = (constant(v) for v in node.inputs[1:5])
    if scale is None or shift is None or mean is None or variance is None:
        return False
    if not np.isfinite(variance).all():
        return False
    epsilon = float_of(node, "epsilon", 1e-5)
    # In double precision: what is folded is rounded once, as the weight's own type.
    deviation = np.sqrt(variance.astype(np.float64) + epsilon)
    factor = scale.astype(np.float64) / deviation
    moved = shift - mean * factor
    source = producer_of(node.inputs[0])
    if not _absorb(node, node.inputs[0], factor, moved):
        return False
    if source is not None:
        gain = scale.astype(np.float64)
        keep_folded_norm(source, FoldedNorm(gain, shift.astype(np.float64)))
    return True


def fold_affine(node: Node) -> bool:
    """Fold an Add or Mul of one number per channel into the Conv or ConvTranspose before it."""
    index = next((i for i, v in enumerate(node.inputs) if is_constant(v)), None)
    if index is None or len(node.inputs) != 2:
        return False
    held = constant(node.inputs[index])
    x = node.inputs[1 - index]
    source = producer_of(x)
    weight = input_at(source, 1) if source is not None else None
    if held is None or weight is None or weight.shape is None:
        return False
    if not _is_per_channel(held.shape, len(weight.shape)):
        return False
    if not is_standard(source, "Conv", "ConvTranspose"):
        return False
    number = held.ravel().astype(np.float64)
    factor, shift = np.ones(1), number
    if node.op_type == "Mul":
        factor, shift = number, np.zeros(1)
    if not _absorb(node, x, factor, shift):
        return False
    norm = folded_norm(source)
    if norm is not None:
        keep_folded_norm(source, norm.then(factor, shift))
    return True


def _is_per_channel(shape: tuple[int, ...], rank: int) -> bool:
    """True for an array that broadcasts over all axes of a result but the channels'."""
    if len(shape) > rank:
        return False
    full = (1,) * (rank - len(shape)) + shape
    return all(length == 1 for axis, length in enumerate(full) if axis != 1)


@dataclass(frozen=True)
class _Layer:
    """A convolution or Gemm with constant parameters that one node alone reads."""

    node: Node
    graph: Graph
    weight: np.ndarray
    bias: np.ndarray

    @property
    def is_transposed(self) -> bool:
        return self.node.op_type == "ConvTranspose"

    @property
    def groups(self) -> int:
        return int_of(self.node, "group", 1)

    @property
    def channels(self) -> int:
        """How many channels it writes."""
        if self.is_transposed:
            return int(self.weight.shape[1]) * self.groups
        return int(self.weight.shape[self._axis])

    @property
    def _axis(self) -> int:
        """Axis of the output channels of a weight whose rows or columns they are."""
        is_turned = self.node.op_type == "Gemm" and not int_of(self.node, "transB", 0)
        return 1 if is_turned else 0

    def scaled(self, factor: np.ndarray) -> np.ndarray:
        """Return the weight with each output channel multiplied by its factor."""
        weight = self.weight
        ones = (1,) * (weight.ndim - 2)
        if self.is_transposed:
            # ConvTranspose weights are (inputs, outputs / groups, ...).
            inputs, outputs = weight.shape[:2]
            by_group = factor.reshape(self.groups, 1, -1)
            by_input = np.repeat(by_group, inputs // self.groups, axis=1)
            factors = by_input.reshape(inputs, outputs, *ones)
        elif self._axis == 1:
            factors = factor.reshape(1, -1)
        else:
            factors = factor.reshape(-1, 1, *ones)
        scaled: np.ndarray = weight * factors
        return scaled


def _sole_layer(node: Node, x: Value | None) -> _Layer | None:
    """Return the convolution or Gemm that writes ``x``, where ``node`` alone reads it."""
    source = producer_of(x)
    graph = node.graph
    if not isinstance(graph, Graph):
        return None
    if not _takes_in(source):
        return None
    middle = source.outputs[0]
    if only_use(middle) is None or source.graph is not graph:
        return None
    given = input_at(source, 2)
    weight = constant(input_at(source, 1))
    if given is not None:
        bias = constant(given)
    else:
        bias = np.zeros((), np.float32)
    if weight is None or bias is None:
        return None
    return _Layer(source, graph, weight, bias)


def _takes_in(node: Node | None) -> TypeGuard[Node]:
    """True for ops whose weight and bias can take in one factor and shift per channel."""
    if is_standard(node, "Conv", "ConvTranspose"):
        return True
    if not is_standard(node, "Gemm"):
        return False
    is_plain = float_of(node, "alpha", 1.0) == float_of(node, "beta", 1.0) == 1.0
    bias = constant(input_at(node, 2))
    return is_plain and (bias is None or bias.ndim < 2)


def _absorb(node: Node, x: Value | None, factor: np.ndarray, shift: np.ndarray) -> bool:
    """Let the layer before ``node`` compute ``factor * layer(x) + shift`` by itself.

    Args:
        node: Reads ``x`` alone, and is removed.
        x: What the layer writes.
        factor: One number, or one per channel.
        shift: One number, or one per channel.
    """
    found = _sole_layer(node, x)
    if found is None:
        return False
    numbers = (factor, shift, found.weight, found.bias)
    if not all(np.isfinite(array).all() for array in numbers):
        return False  # what is not finite keeps its name
    channels = found.channels
    if factor.size not in (1, channels) or shift.size not in (1, channels):
        return False
    factor = np.broadcast_to(factor, channels)
    source = found.node
    graph = found.graph
    dtype = found.weight.dtype
    old = source.inputs[1]
    assert old is not None
    name = old.name or "weight"
    if np.any(factor != 1):
        scaled = found.scaled(factor).astype(dtype)
        weight = add_initializer(graph, f"{name}_folded", scaled)
        replace_input(source, 1, weight)
    old_bias = np.broadcast_to(found.bias, channels).astype(np.float64)
    moved = old_bias * factor + shift
    rounded = moved.astype(dtype)
    bias = add_initializer(graph, f"{name}_bias_folded", rounded)
    replace_input(source, 2, bias)
    take_over(source.outputs[0], node.outputs[0])
    graph.remove(node, safe=True)
    return True


def fold_pad(node: Node) -> bool:
    """Let a Conv pad with zeros by itself where a Pad before it does."""
    before = producer_at(node, 0)
    if not is_standard(before, "Pad"):
        return False
    if text_of(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return False
    added = _spatial_padding(before)
    if added is None:
        return False
    own = ints_of(node, "pads") or [0] * len(added)
    total = [a + b for a, b in zip(own, added, strict=True)]
    node.attributes["pads"] = ir.AttrInt64s("pads", total)
    node.attributes.pop("auto_pad", None)
    node.replace_input_with(0, before.inputs[0])
    return True


def _spatial_padding(pad: Node) -> list[int] | None:
    """Return how many zeros a Pad puts before and behind each spatial axis.

    None where it pads with anything else, at other axes, or cuts off.
    """
    if text_of(pad, "mode", "constant") != "constant" or not _pads_with_zeros(pad):
        return None
    pads = constant(pad.inputs[1])
    if pads is None or any(v is not None for v in pad.inputs[3:]):
        return None
    first, last = (half.astype(int).tolist() for half in np.split(pads, 2))
    # Batch and channels come first.
    is_cut_off = min(first + last) < 0
    if is_cut_off or any(first[:2] + last[:2]):
        return None
    spatial: list[int] = first[2:] + last[2:]
    return spatial


def _pads_with_zeros(pad: Node) -> bool:
    given = input_at(pad, 2)
    if given is None:
        return True
    value = constant(given)
    return value is not None and not np.any(value != 0)
