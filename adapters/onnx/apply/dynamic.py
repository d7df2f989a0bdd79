"""Dynamic operations: activations are quantized at run time, with the range that they have."""

from __future__ import annotations

import numpy as np
from onnx_ir import DataType, Node, Value, node

from octavo.adapters.onnx.describe.site import Site
from octavo.core.contract.adapter import OpParameters

from .activations import Codes, CodesEditor
from .integer_products import PRODUCTS, write_integer_product
from .nodes import Emitted
from .packing import ScaleTensors, WeightTensors, tensor, weight_tensors
from .recurrent import write_dynamic_lstm
from .widening import shared_scale, shared_zero


def write_dynamic(e: CodesEditor, site: Site, params: OpParameters) -> Emitted:
    """Write an op whose activations are quantized at run time."""
    if site.kind == "lstm":
        return write_dynamic_lstm(e, site, params)
    x = e.dynamic_activation(site)
    if site.kind in PRODUCTS:
        return write_integer_product(e, site, params, x)
    return _write_convolution(e, site, params, x)


def _write_convolution(
    e: CodesEditor, site: Site, params: OpParameters, x: Codes
) -> Emitted:
    """Write ``y = Cast(ConvInteger(x, w)) * (x_scale * w_scale) + bias``."""
    assert params.weight is not None
    weight = weight_tensors(params.weight)
    product = _product(e, site, weight, x)
    to_float = {"to": DataType.FLOAT.value}
    cast = node("Cast", product.outputs, to_float)
    weight_scale = _weight_scale(e, site, weight)
    factor = node("Mul", [x.scale, weight_scale])
    scaled = node("Mul", [*cast.outputs, *factor.outputs])
    nodes = [product, cast, factor, scaled]
    bias = e.bias(site, params)
    if bias is not None:
        shaped = _per_channel(bias, site)
        shift = e.float_bias(site, shaped)
        added = node("Add", [*scaled.outputs, shift])
        nodes.append(added)
    e.replace(site, nodes, until=site.node)
    return Emitted(f"{site.name}_ConvInteger_0")


def _product(e: CodesEditor, site: Site, weight: WeightTensors, x: Codes) -> Node:
    """Return the convolution of codes."""
    name = site.held.name
    codes = e.shared(f"{name}_quantized", weight.codes)
    inputs = [x.codes, codes, x.zero_point]
    # The kernel takes one zero point, not one a channel; one of 0 is left out.
    zero = shared_zero(e, name, weight)
    if zero is not None:
        inputs.append(zero)
    original = e.nodes[site.name]
    attributes = dict(original.attributes)
    return node("ConvInteger", inputs, attributes)


def _weight_scale(e: CodesEditor, site: Site, weight: WeightTensors) -> Value:
    """Register a weight's scale, shaped as the convolution's result wants it."""
    scale = weight.scale.stored.numpy()
    shaped = _per_channel(scale, site)
    held = tensor(shaped, weight.scale.stored.dtype, "scale")
    return shared_scale(e, site.held.name, ScaleTensors(held))


def _per_channel(numbers: np.ndarray, site: Site) -> np.ndarray:
    """Shape numbers of one a channel so that they broadcast over (batch, channels, ...)."""
    numbers = np.asarray(numbers)
    # One for the whole tensor broadcasts as it is.
    if numbers.ndim == 0:
        return numbers
    spatial = len(site.held.shape) - 2
    ones = [1] * spatial
    return numbers.reshape(-1, *ones)
