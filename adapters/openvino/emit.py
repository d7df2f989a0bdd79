"""A recipe carried out: codes in place of weights, FakeQuantize where activations are rounded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import openvino as ov
import openvino.opset13 as ops

from octavo.plugin import (
    OpParameters,
    QuantizedTensor,
    QuantParams,
    integer_range,
    pack,
)

from .convolving import can_convolve, convolve, kernel_shape
from .describe import MOVERS, Site

_CODES = {
    "int8": "i8", "uint8": "u8", "int4": "i4", "uint4": "u4", "uint2": "u2",
    "nf4": "nf4", "fp4_e2m1": "f4e2m1", "fp8_e4m3fn": "f8e4m3", "fp8_e5m2": "f8e5m2",
}  # fmt: skip
"""Dtype of codes -> OpenVINO's element type of the same bits."""

Port = Any
_Key = tuple[float, int, str, bool]


class Emitter:
    """Writes quantized ops into a model of its own.

    Args:
        model: A clone of the prepared model; it is changed.
        sites: Of the prepared model.
        convolves: Static linear ops become convolutions.
    """

    def __init__(
        self, model: Any, sites: Mapping[str, Site], *, convolves: bool
    ) -> None:
        self.model = model
        self._sites = sites
        self._convolves = convolves
        self._nodes = {n.get_friendly_name(): n for n in model.get_ordered_ops()}
        self._weights: dict[tuple[int, tuple[int, ...]], Port] = {}
        self._rounded: dict[tuple[str, int, _Key], Port] = {}

    def emit(self, parameters: Mapping[str, OpParameters]) -> None:
        """Write all ops that are quantized."""
        for name, given in parameters.items():
            if not given.scheme.is_float:
                self._of_op(self._sites[name], given)
        # Last: an op that moves values is looked through to who is quantized before it.
        for name, given in parameters.items():
            self._inputs(self._sites[name], given)
        for name, given in parameters.items():
            if self._convolves and given.scheme.mode == "static":
                self._convolve(self._sites[name], given)
        self.model.validate_nodes_and_infer_types()

    def _of_op(self, site: Site, given: OpParameters) -> None:
        node = self._nodes[site.node]
        tensors = (given.weight, *given.further)
        if site.op.type == "embedding" and given.weight is not None:
            self._look_up(node, given.weight)
            return
        for (index, stored), tensor in zip(site.weights.items(), tensors, strict=False):
            if tensor is not None:
                port = self._weight(site, stored, tensor)
                node.input(index).replace_source_output(port)
        if given.bias is not None and site.bias is not None:
            adds, index = self._nodes[site.bias[0]], site.bias[1]
            shape = adds.input_value(index).get_shape()
            bias = np.asarray(given.bias, np.float32).reshape(tuple(shape))
            adds.input(index).replace_source_output(ops.constant(bias).output(0))

    # Weights

    def _weight(
        self, site: Site, stored: tuple[int, ...], tensor: QuantizedTensor
    ) -> Port:
        """Return the weight as its numbers: codes, converted and multiplied by scales.

        Loaded models keep the codes where a kernel takes them.
        """
        key = (id(tensor), stored)
        if key not in self._weights:
            axis = 0 if site.op.weight is None else site.op.weight.channel_axis
            self._weights[key] = _numbers(tensor, stored, axis)
        return self._weights[key]

    def _look_up(self, gather: Any, tensor: QuantizedTensor) -> None:
        """Look codes and scales up by themselves.

        A table that is made numbers of first is unfolded to float32 when a model with any
        FakeQuantize is loaded; this one stays packed always.
        """
        rows, width = tensor.shape
        indices = gather.input_value(1)
        size = tensor.params.spec.group_size or width
        blocks = (rows, width // size, size)
        codes = _constant(np.asarray(tensor.codes).reshape(blocks), tensor)
        found = ops.gather(codes, indices, ops.constant(0))
        found.set_friendly_name(f"{gather.get_friendly_name()}/codes")
        made = ops.convert(found, "f32")
        zero = _zero_points(tensor, (rows, width // size, 1))
        if zero is not None:
            looked_up = ops.gather(zero, indices, ops.constant(0))
            made = ops.subtract(made, ops.convert(looked_up, "f32"))
        scale = np.broadcast_to(
            np.asarray(tensor.params.scale, np.float32).reshape(
                (-1, 1, 1) if size == width else (rows, -1, 1)
            ),
            (rows, width // size, 1),
        )
        scales = ops.gather(ops.constant(scale.copy()), indices, ops.constant(0))
        made = ops.multiply(made, scales)
        rank = indices.get_partial_shape().rank.get_length()
        shape = ops.constant(np.array([0] * rank + [width], np.int64))
        self._replace(gather, ops.reshape(made, shape, True))

    def _replace(self, node: Any, made: Any) -> None:
        name = node.get_friendly_name()
        names = node.output(0).get_names()
        node.output(0).replace(made.output(0))
        made.set_friendly_name(name)
        made.output(0).set_names(names)
        self._nodes[name] = made

    def _convolve(self, site: Site, given: OpParameters) -> None:
        node = self._nodes[site.node]
        if site.op.type != "linear" or given.weight is None or not can_convolve(node):
            return
        shape = kernel_shape(given.weight.shape[0], given.weight.shape[1], node)
        made = convolve(node, self._weight(site, shape, given.weight))
        self._nodes[site.node] = made

    # Activations

    def _inputs(self, site: Site, given: OpParameters) -> None:
        node = self._nodes[site.node]
        for index, params in zip(site.inputs, given.inputs, strict=False):
            if params is not None:
                self._round(node.input(index), params)

    def _round(self, reader: Any, params: QuantParams) -> None:
        """Put a FakeQuantize where the value comes from.

        In front of a reshape or transpose that has no other reader: so it fuses into the tail of
        the product that made the value, and what is moved are codes.
        """
        source = reader.get_source_output()
        while source.get_node().get_type_name() in MOVERS:
            if len(source.get_target_inputs()) > 1:
                break
            reader = source.get_node().input(0)
            source = reader.get_source_output()
        if source.get_node().get_type_name() == "FakeQuantize":
            return
        spec = params.spec
        scale = float(np.asarray(params.scale))
        zero = int(np.asarray(params.zero_point))
        key = (scale, zero, spec.dtype, spec.reduce_range)
        place = (source.get_node().get_friendly_name(), source.get_index(), key)
        if place not in self._rounded:
            made = fake_quantize(source, params)
            made.set_friendly_name(f"{place[0]}/rounded_{len(self._rounded)}")
            self._rounded[place] = made.output(0)
        reader.replace_source_output(self._rounded[place])


def fake_quantize(source: Port, params: QuantParams) -> Any:
    """Return source rounded to the codes of one scale and zero point, as float numbers.

    FakeQuantize-1 of OpenVINO's operation set; its ends are those of the integer range, so that
    zero is a code and the compiler finds the same scale.
    """
    whole = params.spec.whole()
    scale = np.float64(np.asarray(params.scale))
    zero = int(np.asarray(params.zero_point))
    if params.spec.reduce_range:
        # The compiler knows 256 and 255 levels alone: the codes that must not be reached are kept
        # out before.
        low, high = integer_range(params.spec)
        source = ops.clamp(
            source, float((low - zero) * scale), float((high - zero) * scale)
        )
    low, high = integer_range(whole)
    ends = [np.float32((code - zero) * scale) for code in (low, high)]
    return ops.fake_quantize(source, *ends, *ends, levels=high - low + 1)


def _numbers(tensor: QuantizedTensor, stored: tuple[int, ...], axis: int) -> Port:
    """Return the float numbers of a weight's codes.

    Args:
        tensor: Codes in the shape that the op states.
        stored: The shape of the model's own constant.
        axis: Channel axis of the stated shape.
    """
    codes = np.asarray(tensor.codes)
    scale = np.asarray(tensor.params.scale, np.float32)
    size = tensor.params.spec.group_size
    if size is not None:
        rows, width = codes.shape
        blocks = codes.reshape(rows, width // size, size)
        made = _decoded(tensor, blocks, (rows, width // size, 1))
        made = ops.reshape(made, ops.constant(np.array([rows, width])), False)
        if made.get_element_type().get_type_name() != "f32":
            made = ops.convert(made, "f32")
        return made.output(0)
    shape = [1] * len(stored)
    if scale.ndim == 1:
        shape = _channel_shape(codes.shape, stored, axis)
    return _decoded(tensor, codes.reshape(stored), tuple(shape)).output(0)


def _channel_shape(
    stated: tuple[int, ...], stored: tuple[int, ...], axis: int
) -> list[int]:
    """Return the shape in which one number per output channel meets a stored weight."""
    shape = [1] * len(stored)
    if len(stored) == len(stated) or len(stated) == 2:
        shape[axis] = stored[axis]
    elif axis == 0:
        # A grouped convolution: its groups and the outputs of each are two axes.
        shape[0], shape[1] = stored[0], stored[1]
    else:
        shape[axis + 1] = stored[axis + 1]
    return shape


def _decoded(tensor: QuantizedTensor, codes: np.ndarray, shape: tuple[int, ...]) -> Any:
    """Return (codes - zero points) * scales, with scales of a shape that broadcasts."""
    is_half = tensor.params.spec.scale_dtype == "float16"
    kind = "f16" if is_half else "f32"
    made = ops.convert(_constant(codes, tensor), kind)
    zero = _zero_points(tensor, shape)
    if zero is not None:
        made = ops.subtract(made, ops.convert(zero, kind))
    scale = np.asarray(tensor.params.scale, np.float16 if is_half else np.float32)
    return ops.multiply(made, ops.constant(scale.reshape(shape)))


def _zero_points(tensor: QuantizedTensor, shape: tuple[int, ...]) -> Any | None:
    """Return a constant of zero points in the codes' own type; None where all are 0."""
    zero = np.asarray(tensor.params.zero_point)
    if not zero.any():
        return None
    if zero.ndim == 0:
        zero, shape = zero.reshape(1), (1,) * len(shape)
    return _constant(zero.reshape(shape), tensor)


def _constant(codes: np.ndarray, tensor: QuantizedTensor) -> Any:
    """Return codes as a constant of their own element type, packed."""
    spec = tensor.params.spec
    element = getattr(ov.Type, _CODES[spec.dtype])
    if spec.bits == 8:
        dtype = np.int8 if spec.dtype == "int8" else np.uint8
        raw = np.ascontiguousarray(codes.astype(dtype)).view(np.uint8).reshape(-1)
    else:
        raw = pack(codes.reshape(-1), spec.bits)
    packed = ov.Tensor(element, ov.Shape(list(codes.shape)))
    packed.data.reshape(-1).view(np.uint8)[:] = raw
    return ov.op.Constant(packed)
