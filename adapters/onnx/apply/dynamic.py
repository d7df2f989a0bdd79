"""Dynamic operations: activations are quantized at run time, with the range that they have."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from octavo.adapters.onnx.describe.site import Site
from octavo.core.contract.adapter import OpParameters

from .activations import CodesEditor
from .integer_products import PRODUCTS, write_integer_product
from .nodes import Emitted
from .packing import tensor, weight_tensors
from .recurrent import write_dynamic_lstm


def write_dynamic(e: CodesEditor, site: Site, params: OpParameters) -> Emitted:
    """Write an op whose activations are quantized at run time."""
    if site.op.type == "lstm":
        return write_dynamic_lstm(e, site, params)
    if site.op.type in PRODUCTS:
        return write_integer_product(e, site, params, e.dynamic_activation(site))
    return _write_convolution(e, site, params)


def _write_convolution(e: CodesEditor, site: Site, params: OpParameters) -> Emitted:
    """Write ``y = Cast(ConvInteger(x, w)) * (x_scale * w_scale) + bias``."""
    assert params.weight is not None and site.op.weight is not None
    x = e.dynamic_activation(site)
    weight = weight_tensors(params.weight)
    name = site.op.weight.name
    inputs: list[ir.Value | None] = [
        x.codes,
        e.shared(f"{name}_quantized", weight.codes),
        x.zero_point,
    ]
    # The kernel takes one zero point, not one a channel; one of 0 is left out.
    if not params.weight.params.spec.symmetric:
        inputs.append(e.shared(f"{name}_zero", weight.zero_point))
    product = ir.node("ConvInteger", inputs, dict(e.nodes[site.op.name].attributes))
    cast = ir.node("Cast", [product.outputs[0]], {"to": ir.DataType.FLOAT.value})
    rank = len(site.op.weight.shape)
    column = _per_channel(weight.scale.numpy(), rank)
    scale = e.initializer(f"{name}_scale", tensor(column, ir.DataType.FLOAT, "scale"))
    factor = ir.node("Mul", [x.scale, scale])
    scaled = ir.node("Mul", [cast.outputs[0], factor.outputs[0]])
    nodes = [product, cast, factor, scaled]
    bias = e.bias(site, params)
    if bias is not None:
        shift = e.float_bias(site, _per_channel(bias, rank))
        nodes.append(ir.node("Add", [scaled.outputs[0], shift]))
    e.replace(site, nodes, until=site.node)
    return Emitted(f"{site.op.name}_ConvInteger_0")


def _per_channel(numbers: np.ndarray, rank: int) -> np.ndarray:
    """Shape numbers of one a channel so that they broadcast over (batch, channels, ...)."""
    numbers = np.asarray(numbers)
    if numbers.ndim == 0:
        return numbers
    ones = (1,) * (rank - 2)
    return numbers.reshape(-1, *ones)
