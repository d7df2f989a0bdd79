"""What looks at many elements at once: softmax, means and sums, normalization."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from .building import Order, Shape
from .folding import fold
from .layout import Conversion, Writer, image_order, permuted
from .reading import Node


def softmax(state: Conversion, node: Node) -> None:
    """Softmax and LogSoftmax over one axis, which LiteRT takes last."""
    value = state.value(node.inputs[0])
    rank = len(value.shape)
    is_early = state.graph.opset < 13
    axis = node.attributes.get("axis", 1 if is_early else -1) % rank
    is_alone = all(size == 1 for size in value.shape[axis + 1 :])
    if is_early and not is_alone:
        raise node.refused(
            "before operator set 13 it runs over several axes; export the model anew"
        )
    order = value.natural
    if order[-1] != axis:
        order = (*(a for a in order if a != axis), axis)
    x = state.tensor(node.inputs[0], order)
    if node.kind == "LogSoftmax":
        state.emit(node, "LOG_SOFTMAX", [x], order, schema.LogSoftmaxOptionsT())
        return
    options = schema.SoftmaxOptionsT()
    options.beta = 1.0
    state.emit(node, "SOFTMAX", [x], order, options)


def local_norm(state: Conversion, node: Node) -> None:
    """LRN: x / (bias + alpha / size * sum of squares of neighbouring channels) ** beta."""
    given = node.attributes
    size = given["size"]
    if size % 2 == 0:
        raise node.refused("LiteRT has it for an odd number of channels")
    order = image_order(state.value(node.inputs[0]), node)
    options = schema.LocalResponseNormalizationOptionsT()
    options.radius = size // 2
    options.bias = given.get("bias", 1.0)
    options.alpha = given.get("alpha", 1e-4) / size
    options.beta = given.get("beta", 0.75)
    x = state.tensor(node.inputs[0], order)
    state.emit(node, "LOCAL_RESPONSE_NORMALIZATION", [x], order, options)


def batch_norm(state: Conversion, node: Node) -> None:
    """BatchNormalization of running statistics: a factor and a sum for each channel."""
    arrays = [state.constant(name) for name in node.inputs[1:5]]
    known = [array for array in arrays if array is not None]
    if len(known) < 4 or node.attributes.get("training_mode"):
        raise node.refused("its statistics are not constant; export the model for use")
    scale, shift, mean, variance = known
    deviation = np.sqrt(variance + node.attributes.get("epsilon", 1e-5))
    factor = scale / deviation
    offset = shift - mean * factor
    if fold(state, node, node.inputs[0], factor, offset):
        return
    value = state.value(node.inputs[0])
    rank = len(value.shape)
    order = value.natural
    along = (1, -1) + (1,) * (rank - 2)
    channels = [a.reshape(along).transpose(order) for a in (factor, offset)]
    factors, offsets = (state.builder.constant("norm", a) for a in channels)
    shape = permuted(value.shape, order)
    x = state.tensor(node.inputs[0], order)
    product = state.step(node, "MUL", [x, factors], shape, schema.MulOptionsT())
    state.emit(node, "ADD", [product, offsets], order, schema.AddOptionsT())


def reduce(state: Conversion, node: Node) -> None:
    """ReduceMean, ReduceSum, ReduceMax and ReduceMin over known axes."""
    codes = {"ReduceMean": "MEAN", "ReduceSum": "SUM"}
    codes |= {"ReduceMax": "REDUCE_MAX", "ReduceMin": "REDUCE_MIN"}
    value = state.value(node.inputs[0])
    rank = len(value.shape)
    found = state.known(node, "axes", 1)
    axes = range(rank) if found is None else [axis % rank for axis in found]
    keeps = bool(node.attributes.get("keepdims", 1))
    order = value.natural
    places = state.integers([order.index(axis) for axis in axes])
    options = schema.ReducerOptionsT()
    options.keepDims = keeps
    x = state.tensor(node.inputs[0], order)
    after = order if keeps else _without(order, axes)
    state.emit(node, codes[node.kind], [x, places], after, options)


def _without(order: Order, axes: Sequence[int]) -> Order:
    """Return an order of the axes that are left, counted anew."""
    left = [axis for axis in order if axis not in axes]
    ranks = sorted(left)
    return tuple(ranks.index(axis) for axis in left)


def layer_norm(state: Conversion, node: Node) -> None:
    """LayerNormalization: over the last axes."""
    value = state.value(node.inputs[0])
    rank = len(value.shape)
    first = node.attributes.get("axis", -1) % rank
    order = value.natural
    scale = state.aligned(node.inputs[1], order)
    shift = state.aligned(node.inputs[2], order) if node.given(2) else None
    _normalized(state, node, range(first, rank), scale, shift)


def instance_norm(state: Conversion, node: Node) -> None:
    """InstanceNormalization: over all axes but batch and channels; group norms hold one too."""
    value = state.value(node.inputs[0])
    rank = len(value.shape)
    order = value.natural
    arrays = [state.graph.constants[name] for name in node.inputs[1:3]]
    along = (1, -1) + (1,) * (rank - 2)
    pair = [
        state.builder.constant("norm", array.reshape(along).transpose(order))
        for array in arrays
    ]
    _normalized(state, node, range(2, rank), pair[0], pair[1])


def _normalized(
    state: Conversion, node: Node, over: Sequence[int], scale: int, shift: int | None
) -> None:
    """Write a normalization by its parts, as ONNX's specification of LayerNormalization has it."""
    value = state.value(node.inputs[0])
    order = value.natural
    shape = permuted(value.shape, order)
    axes = [order.index(axis) for axis in over]
    narrow = tuple(1 if i in axes else size for i, size in enumerate(shape))
    x = state.tensor(node.inputs[0], order)
    mean = _mean(state, node, x, axes, narrow)
    centred = state.step(node, "SUB", [x, mean], shape, schema.SubOptionsT())
    squared = state.step(node, "MUL", [centred] * 2, shape, schema.MulOptionsT())
    variance = _mean(state, node, squared, axes, narrow)
    epsilon = state.number(node.attributes.get("epsilon", 1e-5))
    safe = state.step(node, "ADD", [variance, epsilon], narrow, schema.AddOptionsT())
    inverse = state.step(node, "RSQRT", [safe], narrow)
    pair = [centred, inverse]
    normal = state.step(node, "MUL", pair, shape, schema.MulOptionsT())
    if shift is None:
        state.emit(node, "MUL", [normal, scale], order, schema.MulOptionsT())
        return
    scaled = state.step(node, "MUL", [normal, scale], shape, schema.MulOptionsT())
    state.emit(node, "ADD", [scaled, shift], order, schema.AddOptionsT())


def _mean(
    state: Conversion, node: Node, x: int, axes: Sequence[int], shape: Shape
) -> int:
    options: Any = schema.ReducerOptionsT()
    options.keepDims = True
    return state.step(node, "MEAN", [x, state.integers(axes)], shape, options)


WRITERS: dict[str, Writer] = {
    "Softmax": softmax,
    "LogSoftmax": softmax,
    "BatchNormalization": batch_norm,
    "LRN": local_norm,
    "InstanceNormalization": instance_norm,
    "LayerNormalization": layer_norm,
    "ReduceMean": reduce,
    "ReduceSum": reduce,
    "ReduceMax": reduce,
    "ReduceMin": reduce,
}
