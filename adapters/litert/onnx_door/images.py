"""Convolutions, pooling and resizing: what LiteRT computes with channels last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from .folding import is_positive
from .layout import Conversion, Writer, image_order
from .reading import Node

PADDING = schema.Padding


@dataclass(frozen=True)
class Window:
    """What a kernel covers, by ONNX's attributes; two numbers each, for rows and columns.

    Attributes:
        size: The kernel's.
        strides: From one position to the next.
        dilations: From one element of the kernel to the next.
        begin: Padding before.
        end: Padding behind; where sizes are rounded up, with what that reads beyond the image.
        declared: Padding behind, as the node has it.
        inside: The image's size; -1 where it is not known.
    """

    size: Sequence[int]
    strides: Sequence[int]
    dilations: Sequence[int]
    begin: Sequence[int]
    end: Sequence[int]
    declared: Sequence[int]
    inside: Sequence[int]

    @property
    def reach(self) -> list[int]:
        """Pixels from the first that the kernel covers to the last."""
        return [(k - 1) * d + 1 for k, d in zip(self.size, self.dilations, strict=True)]

    @property
    def is_padded(self) -> bool:
        """Whether there is any padding."""
        return any((*self.begin, *self.end))

    @property
    def is_same(self) -> bool:
        """Whether the padding is what the schema calls SAME: as many positions as strides go into
        the image, the smaller half of the padding before it."""
        return [*zip(self.begin, self.end, strict=True)] == [
            _same(*item)
            for item in zip(self.inside, self.reach, self.strides, strict=True)
        ]

    def positions(self, axis: int) -> int:
        """Return how many times the kernel is laid along an axis."""
        padded = self.inside[axis] + self.begin[axis] + self.end[axis]
        return (padded - self.reach[axis]) // self.strides[axis] + 1


def _same(inside: int, reach: int, stride: int) -> tuple[int, int]:
    """Return what SAME pads before and behind; what no padding is where that cannot be known."""
    total = reach - 1
    if stride > 1:
        if inside < 0:
            return (-1, -1)
        positions = -(-inside // stride)
        total = max((positions - 1) * stride + reach - inside, 0)
    return (total // 2, total - total // 2)


def _window(node: Node, size: Sequence[int], inside: Sequence[int]) -> Window:
    """Read a node's attributes.

    Raises:
        ModelError: If its padding depends on a size that is not known.
    """
    given = node.attributes
    strides = given.get("strides", [1, 1])
    dilations = given.get("dilations", [1, 1])
    pads = list(given.get("pads", [0, 0, 0, 0]))
    automatic = given.get("auto_pad", "NOTSET")
    if automatic.startswith("SAME"):
        reach = [(k - 1) * d + 1 for k, d in zip(size, dilations, strict=True)]
        pairs = [_same(*item) for item in zip(inside, reach, strides, strict=True)]
        if automatic == "SAME_LOWER":
            pairs = [(end, begin) for begin, end in pairs]
            if -1 in (number for pair in pairs for number in pair):
                raise node.refused("auto_pad of an image whose size is not known")
        pads = [pair[0] for pair in pairs] + [pair[1] for pair in pairs]
    begin, declared = pads[:2], pads[2:]
    exact = Window(size, strides, dilations, begin, declared, declared, inside)
    if not given.get("ceil_mode", 0):
        return exact
    if -1 in inside:
        raise node.refused("ceil_mode of an image whose size is not known")
    end = [_rounded_up(exact, axis) for axis in (0, 1)]
    return Window(size, strides, dilations, begin, end, declared, inside)


def _rounded_up(window: Window, axis: int) -> int:
    """Return the padding behind with which all positions lie inside, by ONNX's ceil_mode."""
    begin, end, stride = window.begin[axis], window.end[axis], window.strides[axis]
    inside, reach = window.inside[axis], window.reach[axis]
    positions = -(-(inside + begin + end - reach) // stride) + 1
    # A position that would begin in the padding behind is left out.
    if (positions - 1) * stride >= inside + begin:
        positions -= 1
    return (positions - 1) * stride + reach - inside - begin


def _padded(
    state: Conversion, node: Node, window: Window, code: str, extra: Sequence[int] = ()
) -> int:
    """Return the tensor of a node's image with its padding around it."""
    value = state.value(node.inputs[0])
    image = state.tensor(node.inputs[0], image_order(value, node))
    pairs = [0, 0, window.begin[0], window.end[0], window.begin[1], window.end[1], 0, 0]
    array = np.array(pairs, np.int32).reshape(4, 2)
    widths = state.builder.constant("paddings", array)
    batch, channels, *sizes = value.shape
    wide = [
        size if size < 0 else size + begin + end
        for size, begin, end in zip(sizes, window.begin, window.end, strict=True)
    ]
    options: Any = schema.PadOptionsT()
    if code == "MIRROR_PAD":
        options = schema.MirrorPadOptionsT()
        options.mode = schema.MirrorPadMode.SYMMETRIC
    shape = (batch, *wide, channels)
    return state.step(node, code, [image, widths, *extra], shape, options)


def _placed(
    state: Conversion, node: Node, window: Window, options: Any, code: str = "PAD"
) -> int:
    """Set an operator's padding; return its image, which holds what the operator cannot pad."""
    options.strideH, options.strideW = window.strides
    options.padding = PADDING.VALID
    if window.is_padded and not window.is_same:
        return _padded(state, node, window, code)
    if window.is_padded:
        options.padding = PADDING.SAME
    order = image_order(state.value(node.inputs[0]), node)
    return state.tensor(node.inputs[0], order)


def convolution(state: Conversion, node: Node) -> None:
    """Conv: weights (O, I / groups, rows, columns), of ONNX, become (O, rows, columns, I / groups).

    Of depthwise ones (1, rows, columns, O).
    """
    value = state.value(node.inputs[0])
    order = image_order(value, node)
    weight = state.constant(node.inputs[1])
    if weight is None:
        raise node.refused("its weight is computed by the model")
    groups = node.attributes.get("group", 1)
    window = _window(node, weight.shape[2:], value.shape[2:])
    is_depthwise = groups > 1 and weight.shape[1] == 1 and groups == value.shape[1]
    if is_depthwise:
        options: Any = schema.DepthwiseConv2DOptionsT()
        options.depthMultiplier = weight.shape[0] // groups
        code, laid = "DEPTHWISE_CONV_2D", weight.transpose(1, 2, 3, 0)
    else:
        options = schema.Conv2DOptionsT()
        code, laid = "CONV_2D", weight.transpose(0, 2, 3, 1)
    options.dilationHFactor, options.dilationWFactor = window.dilations
    image = _placed(state, node, window, options)
    arrays = (laid, _bias(state, node, weight.shape[0]))
    titles = (node.inputs[1], node.given(2) or f"{node.name}/bias")
    stored = [
        state.builder.constant(*pair) for pair in zip(titles, arrays, strict=True)
    ]
    state.emit(node, code, [image, *stored], order, options)


def _bias(state: Conversion, node: Node, channels: int) -> np.ndarray:
    """Return a node's bias; zeros where it has none, so that what follows may fold into it."""
    if not node.given(2):
        return np.zeros(channels, np.float32)
    bias = state.constant(node.inputs[2])
    if bias is None:
        raise node.refused("its bias is computed by the model")
    return bias


def pooling(state: Conversion, node: Node) -> None:
    """MaxPool and AveragePool."""
    value = state.value(node.inputs[0])
    order = image_order(value, node)
    window = _window(node, node.attributes["kernel_shape"], value.shape[2:])
    if any(d != 1 for d in window.dilations):
        raise node.refused("LiteRT pools without dilation")
    if len(node.outputs) > 1:
        raise node.refused("LiteRT does not return where a maximum was")
    options = schema.Pool2DOptionsT()
    options.filterHeight, options.filterWidth = window.size
    if node.kind == "MaxPool":
        # A window's maximum does not change when pixels of the window are seen twice, or a zero
        # beside what is not negative; a runtime pads with zeros faster.
        code = "PAD" if is_positive(state, node.inputs[0]) else "MIRROR_PAD"
        image = _placed(state, node, window, options, code)
        state.emit(node, "MAX_POOL_2D", [image], order, options)
        return
    counts_padding = node.attributes.get("count_include_pad", 0)
    is_plain = not window.is_padded or (window.is_same and not counts_padding)
    image = _placed(state, node, window, options) if is_plain else -1
    if is_plain:
        state.emit(node, "AVERAGE_POOL_2D", [image], order, options)
        return
    _average_of_padded(state, node, window, options, bool(counts_padding))


def _average_of_padded(
    state: Conversion, node: Node, window: Window, options: Any, counts: bool
) -> None:
    """Write an average over zeros around the image, and a factor where ONNX counts fewer pixels."""
    order = image_order(state.value(node.inputs[0]), node)
    if -1 in window.inside:
        raise node.refused("padding of an image whose size is not known")
    image = _padded(state, node, window, "PAD")
    options.strideH, options.strideW = window.strides
    options.padding = PADDING.VALID
    factor = np.outer(_shares(window, 0, counts), _shares(window, 1, counts))
    if (factor == 1).all():
        state.emit(node, "AVERAGE_POOL_2D", [image], order, options)
        return
    batch, channels, *sizes = state.graph.shape(node.outputs[0])
    shape = (batch, *sizes, channels)
    mean = state.step(node, "AVERAGE_POOL_2D", [image], shape, options)
    factors = factor[:, :, None].astype(np.float32)
    stored = state.builder.constant("counts", factors)
    state.emit(node, "MUL", [mean, stored], order, schema.MulOptionsT())


def _shares(window: Window, axis: int, counts: bool) -> np.ndarray:
    """Return, for each position, the kernel's size over the number of pixels that count."""
    begin, inside, size = window.begin[axis], window.inside[axis], window.size[axis]
    first, last = begin, begin + inside
    if counts:
        first, last = 0, begin + inside + window.declared[axis]
    starts = np.arange(window.positions(axis)) * window.strides[axis]
    counted = np.minimum(starts + size, last) - np.maximum(starts, first)
    return size / counted


def global_average(state: Conversion, node: Node) -> None:
    """GlobalAveragePool as a mean over rows and columns."""
    order = image_order(state.value(node.inputs[0]), node)
    image = state.tensor(node.inputs[0], order)
    options = schema.ReducerOptionsT()
    options.keepDims = True
    state.emit(node, "MEAN", [image, state.integers((1, 2))], order, options)


WRITERS: dict[str, Writer] = {
    "Conv": convolution,
    "MaxPool": pooling,
    "AveragePool": pooling,
    "GlobalAveragePool": global_average,
}
