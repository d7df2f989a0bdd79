"""Dynamic operations: activations are quantized at run time, with the range that they have."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from octavo.adapters.onnx.describe.site import Site
from octavo.core.contract.adapter import OpParameters

from .activations import Codes, CodesEditor
from .integer_products import PRODUCTS, write_integer_product
from .nodes import Emitted
from .packing import tensor, weight_tensors
from .recurrent import write_dynamic_lstm


def write_dynamic(e: CodesEditor, site: Site, params: OpParameters) -> Emitted:
    """Write an op whose activations are quantized at run time."""
    if site.kind == "lstm":
        return write_dynamic_lstm(e, site, params)
    if site.kind in PRODUCTS:
        return write_integer_product(e, site, params, e.dynamic_activation(site))
    return _write_convolution(e, site, params)


def _write_convolution(e: CodesEditor, site: Site, params: OpParameters) -> Emitted:
    """Write ``y = Cast(ConvInteger(x, w)) * (x_scale * w_scale) + bias``."""
    x = e.dynamic_activation(site)
    product = _product(e, site, params, x)
    to_float = {"to": ir.DataType.FLOAT.value}
    cast = ir.node("Cast", [product.outputs[0]], to_float)
    weight_scale = _weight_scale(e, site, params)
    factor = ir.node("Mul", [x.scale, weight_scale])
    scaled = ir.node("Mul", [cast.outputs[0], factor.outputs[0]])
    nodes = [product, cast, factor, scaled]
    bias = e.bias(site, params)
    if bias is not None:
        shift = e.float_bias(site, _per_channel(bias, site))
        nodes.append(ir.node("Add", [scaled.outputs[0], shift]))
    e.replace(site, nodes, until=site.node)
    return Emitted(f"{site.name}_ConvInteger_0")


def _product(e: CodesEditor, site: Site, params: OpParameters, x: Codes) -> ir.Node:
    """Return the convolution of codes."""
    assert params.weight is not None
    weight = weight_tensors(params.weight)
    name = site.held.name
    codes = e.shared(f"{name}_quantized", weight.codes)
    inputs: list[ir.Value | None] = [x.codes, codes, x.zero_point]
    # The kernel takes one zero point, not one a channel; one of 0 is left out.
    if not params.weight.params.spec.symmetric:
        inputs.append(e.shared(f"{name}_zero", weight.zero_point))
    attributes = dict(e.nodes[site.name].attributes)
    return ir.node("ConvInteger", inputs, attributes)


def _weight_scale(e: CodesEditor, site: Site, params: OpParameters) -> ir.Value:
    """Register a weight's scale, shaped as the convolution's result wants it."""
    assert params.weight is not None
    scale = weight_tensors(params.weight).scale.numpy()
    shaped = _per_channel(scale, site)
    held = tensor(shaped, ir.DataType.FLOAT, "scale")
    return e.initializer(f"{site.held.name}_scale", held)


def _per_channel(numbers: np.ndarray, site: Site) -> np.ndarray:
    """Shape numbers of one a channel so that they broadcast over (batch, channels, ...)."""
    numbers = np.asarray(numbers)
    if numbers.ndim == 0:
        return numbers
    spatial = len(site.held.shape) - 2
    return numbers.reshape(-1, *[1] * spatial)
