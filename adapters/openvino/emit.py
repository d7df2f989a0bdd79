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
    QuantSpec,
    integer_range,
    pack,
    weight_parts,
)

from .convolving import can_convolve, convolve, kernel_shape
from .describe import MOVERS, Site

_CODES = {
    "int8": "i8", "uint8": "u8", "int4": "i4", "uint4": "u4", "uint2": "u2",
    "nf4": "nf4", "fp4_e2m1": "f4e2m1", "fp8_e4m3fn": "f8e4m3", "fp8_e5m2": "f8e5m2",
}  # fmt: skip
"""Dtype of codes -> OpenVINO's element type of the same bits."""

Port = Any


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
        self._rounded: dict[tuple[str, int, float, int, QuantSpec], Port] = {}

    def emit(self, parameters: Mapping[str, OpParameters]) -> None:
        """Write all ops that are quantized: weights, what is rounded before them, their form."""
        quantized = {n: p for n, p in parameters.items() if not p.scheme.is_float}
        for name, given in quantized.items():
            self._write_weights(self._sites[name], given)
        for name, given in quantized.items():
            node, indices = self._nodes[name], self._sites[name].inputs
            for index, params in zip(indices, given.inputs, strict=False):
                if params is not None:
                    self._round(node.input(index), params)
        for name, given in quantized.items():
            if self._convolves and given.scheme.mode == "static":
                self._convolve(self._sites[name], given)
        self.model.validate_nodes_and_infer_types()

    def _write_weights(self, site: Site, given: OpParameters) -> None:
        node = self._nodes[site.op.name]
        if site.op.type == "embedding" and given.weight is not None:
            self._look_up(node, given.weight)
            return
        tensors = (given.weight, *given.further)
        for (index, stored), tensor in zip(site.stored.items(), tensors, strict=False):
            if tensor is not None:
                weight = self._weight(site, stored, tensor)
                node.input(index).replace_source_output(weight)
        if given.bias is not None and site.bias is not None:
            adds, index = self._nodes[site.bias[0]], site.bias[1]
            shape = tuple(adds.input_value(index).get_shape())
            bias = ops.constant(np.asarray(given.bias, np.float32).reshape(shape))
            adds.input(index).replace_source_output(bias.output(0))

    def _weight(
        self, site: Site, stored: tuple[int, ...], tensor: QuantizedTensor
    ) -> Port:
        """Return (codes - zero points) * scales: kernels that take codes find them so."""
        key = (id(tensor), stored)
        if key in self._weights:
            return self._weights[key]
        assert site.op.weight is not None
        parts = weight_parts(tensor, stored, site.op.weight.channel_axis)
        kind = "f16" if parts.scale.dtype == np.float16 else "f32"
        made = ops.convert(_constant(parts.codes, tensor), kind)
        if parts.zero_point is not None:
            zero = ops.convert(_constant(parts.zero_point, tensor), kind)
            made = ops.subtract(made, zero)
        made = ops.multiply(made, ops.constant(parts.scale))
        if parts.codes.shape != parts.shape:
            made = ops.reshape(made, ops.constant(np.array(parts.shape)), False)
        if kind == "f16":
            made = ops.convert(made, "f32")
        self._weights[key] = made.output(0)
        return self._weights[key]

    def _look_up(self, gather: Any, tensor: QuantizedTensor) -> None:
        """Look codes and scales up by themselves.

        A table that is made numbers of first is unfolded to float32 when a model with any
        FakeQuantize is loaded; this one stays packed always.
        """
        parts = weight_parts(tensor)
        indices = gather.input_value(1)

        def looked_up(table: Any) -> Any:
            return ops.convert(ops.gather(table, indices, ops.constant(0)), "f32")

        made = looked_up(_constant(parts.codes, tensor))
        codes = made.input_value(0).get_node()
        codes.set_friendly_name(f"{gather.get_friendly_name()}/codes")
        if parts.zero_point is not None:
            made = ops.subtract(made, looked_up(_constant(parts.zero_point, tensor)))
        made = ops.multiply(made, looked_up(ops.constant(parts.scale)))
        if parts.codes.shape != parts.shape:
            rank = indices.get_partial_shape().rank.get_length()
            shape = np.array([0] * rank + [parts.shape[-1]])
            made = ops.reshape(made, ops.constant(shape), True)
        name, names = gather.get_friendly_name(), gather.output(0).get_names()
        gather.output(0).replace(made.output(0))
        made.set_friendly_name(name)
        made.output(0).set_names(names)
        self._nodes[name] = made

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
        scale, zero = float(params.scale), int(params.zero_point)
        name = source.get_node().get_friendly_name()
        place = (name, source.get_index(), scale, zero, params.spec)
        if place not in self._rounded:
            made = fake_quantize(source, params)
            made.set_friendly_name(f"{name}/rounded_{len(self._rounded)}")
            self._rounded[place] = made.output(0)
        reader.replace_source_output(self._rounded[place])

    def _convolve(self, site: Site, given: OpParameters) -> None:
        node, tensor = self._nodes[site.op.name], given.weight
        if site.op.type == "linear" and tensor is not None and can_convolve(node):
            rows, features = tensor.shape
            shape = kernel_shape(rows, features, node)
            made = convolve(node, self._weight(site, shape, tensor))
            self._nodes[site.op.name] = made


def fake_quantize(source: Port, params: QuantParams) -> Any:
    """Return source rounded to the codes of one scale and zero point, as float numbers.

    FakeQuantize-1 of OpenVINO's operation set; its ends are those of the integer range, so that
    zero is a code and the compiler finds the same scale.
    """
    scale, zero = np.float64(params.scale), int(params.zero_point)
    if params.spec.reduce_range:
        # The compiler knows 256 and 255 levels alone: the codes that must not be reached are kept
        # out before.
        low, high = integer_range(params.spec)
        ends = [float((code - zero) * scale) for code in (low, high)]
        source = ops.clamp(source, *ends)
    low, high = integer_range(params.spec.whole())
    whole = [np.float32((code - zero) * scale) for code in (low, high)]
    return ops.fake_quantize(source, *whole, *whole, levels=high - low + 1)


def _constant(codes: np.ndarray, tensor: QuantizedTensor) -> Any:
    """Return codes as a constant of their own element type, packed."""
    spec = tensor.params.spec
    packed = ov.Tensor(getattr(ov.Type, _CODES[spec.dtype]), ov.Shape(codes.shape))
    raw = codes.reshape(-1).view(np.uint8)
    packed.data.reshape(-1).view(np.uint8)[:] = pack(raw, spec.bits)
    return ov.op.Constant(packed)
