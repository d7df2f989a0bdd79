"""What makes images larger: transposed convolutions, resizing, channels laid out as pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from .layout import Conversion, Writer, image_order
from .reading import Node

ROUNDED = ("half_pixel", "pytorch_half_pixel")
"""Coordinates that count from the middle of a pixel."""


def transposed(state: Conversion, node: Node) -> None:
    """ConvTranspose: weights (I, O, rows, columns), of ONNX, become (O, rows, columns, I).

    The whole of what the kernel reaches is computed; ONNX's padding cuts off its borders.
    """
    value = state.value(node.inputs[0])
    order = image_order(value, node)
    weight = state.constant(node.inputs[1])
    given = node.attributes
    if weight is None or given.get("group", 1) != 1:
        raise node.refused("LiteRT has it for one group and a constant weight")
    if any(d != 1 for d in given.get("dilations", [1])):
        raise node.refused("LiteRT has it without dilation")
    if given.get("auto_pad", "NOTSET") != "NOTSET" or "output_shape" in given:
        raise node.refused("its padding must be written out as pads")
    if -1 in value.shape[2:]:
        raise node.refused("the size of the image must be known")
    channels = weight.shape[1]
    strides = given.get("strides", [1, 1])
    whole = [
        (size - 1) * stride + reach
        for size, stride, reach in zip(
            value.shape[2:], strides, weight.shape[2:], strict=True
        )
    ]
    shape = (value.shape[0], *whole, channels)
    options = schema.TransposeConvOptionsT()
    options.strideH, options.strideW = strides
    options.padding = schema.Padding.VALID
    bias = np.zeros(channels, np.float32)
    if node.given(2):
        bias = state.graph.constants[node.inputs[2]]
    tensors = [
        state.sizes(node, shape),
        state.builder.constant(node.inputs[1], weight.transpose(1, 2, 3, 0)),
        state.tensor(node.inputs[0], order),
        state.builder.constant(node.given(2) or f"{node.name}/bias", bias),
    ]
    rows, columns = state.graph.shape(node.outputs[0])[2:]
    begin = given.get("pads", [0, 0, 0, 0])[:2]
    if [rows, columns] == whole:
        state.emit(node, "TRANSPOSE_CONV", tensors, order, options)
        return
    if begin[0] + rows > whole[0] or begin[1] + columns > whole[1]:
        raise node.refused("its output_padding reaches beyond the kernel")
    image = state.step(node, "TRANSPOSE_CONV", tensors, shape, options)
    bounds = ((0, *begin, 0), (0, begin[0] + rows, begin[1] + columns, 0), (1,) * 4)
    cut = schema.StridedSliceOptionsT()
    cut.beginMask = cut.endMask = 0b1001  # batch and channels, whole
    numbers = [state.integers(bound) for bound in bounds]
    state.emit(node, "STRIDED_SLICE", [image, *numbers], order, cut)


def resize(state: Conversion, node: Node) -> None:
    """Resize and Upsample of images: nearest and linear."""
    value = state.value(node.inputs[0])
    order = image_order(value, node)
    shape = state.graph.shape(node.outputs[0])
    if -1 in shape[2:] or shape[1] != value.shape[1]:
        raise node.refused("LiteRT resizes to rows and columns that are known")
    mode = node.attributes.get("mode", "nearest")
    earlier = "asymmetric" if node.kind == "Upsample" else "half_pixel"
    where = node.attributes.get("coordinate_transformation_mode", earlier)
    is_half = where in ROUNDED
    if mode == "nearest":
        code, options = _nearest(node, where, value.shape[2:], shape[2:])
    elif mode == "linear" and (is_half or where in ("align_corners", "asymmetric")):
        code, options = "RESIZE_BILINEAR", schema.ResizeBilinearOptionsT()
        options.halfPixelCenters = is_half
        options.alignCorners = where == "align_corners"
    else:
        raise node.refused(f"LiteRT has no {mode} resizing of coordinates {where}")
    image = state.tensor(node.inputs[0], order)
    state.emit(node, code, [image, state.integers(shape[2:])], order, options)


def _nearest(
    node: Node, where: str, old: Sequence[int], new: Sequence[int]
) -> tuple[str, Any]:
    """Return the operator that copies the nearest pixel.

    LiteRT rounds ``x * old / new`` down. With whole factors, ONNX's half pixels, rounded either way
    to the nearest, copy the same pixels.
    """
    rounding = node.attributes.get("nearest_mode", "round_prefer_floor")
    is_whole = all(b % a == 0 for a, b in zip(old, new, strict=True))
    is_down = where == "asymmetric" and (rounding == "floor" or node.kind == "Upsample")
    is_near = where in ROUNDED and rounding.startswith("round")
    if not (is_down or (is_near and is_whole)):
        raise node.refused(
            f"LiteRT has no nearest resizing of coordinates {where}, {rounding}"
        )
    return "RESIZE_NEAREST_NEIGHBOR", schema.ResizeNearestNeighborOptionsT()


def depth_to_space(state: Conversion, node: Node) -> None:
    """DepthToSpace: LiteRT has ONNX's order DCR; channels of CRD (PixelShuffle) change places."""
    value = state.value(node.inputs[0])
    order = image_order(value, node)
    size = node.attributes["blocksize"]
    image = state.tensor(node.inputs[0], order)
    if node.attributes.get("mode", "DCR") == "CRD":
        places = np.arange(value.shape[1]).reshape(-1, size * size).T.reshape(-1)
        batch, channels, rows, columns = value.shape
        options: Any = schema.GatherOptionsT()
        options.axis = 3
        pair = [image, state.integers(places.tolist())]
        shape = (batch, rows, columns, channels)
        image = state.step(node, "GATHER", pair, shape, options)
    options = schema.DepthToSpaceOptionsT()
    options.blockSize = size
    state.emit(node, "DEPTH_TO_SPACE", [image], order, options)


WRITERS: dict[str, Writer] = {
    "ConvTranspose": transposed,
    "Resize": resize,
    "Upsample": resize,
    "DepthToSpace": depth_to_space,
}
