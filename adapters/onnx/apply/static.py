"""Static operations: float operators between DequantizeLinear and QuantizeLinear, for fusion."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from octavo.adapters.onnx.describe.site import Site
from octavo.adapters.onnx.prepare.constants import replace_input
from octavo.core.contract.adapter import OpParameters
from octavo.core.errors import SchemeError
from octavo.core.numerics.tensor import QuantizedTensor

from .activations import CodesEditor
from .integer_products import PRODUCTS, write_integer_product
from .nodes import Emitted, dequantize_linear
from .packing import bias_tensors, tensor, weight_tensors
from .widening import shared_weight


def write_static(e: CodesEditor, site: Site, params: OpParameters) -> Emitted:
    """Write an op whose activations have scales that are known beforehand."""
    if _suits_integer_product(e, site, params):
        x = e.activation(site, 0, params.inputs[0])
        return write_integer_product(e, site, params, x)
    node = e.nodes[site.name]
    for position, index in enumerate(site.inputs):
        codes = e.activation(site, position, params.inputs[position])
        node.replace_input_with(index, e.dequantized_at(node, codes))
    if site.weight is not None and params.weight is not None:
        weight = _write_bias(e, site, params, params.weight)
        dequantized = _dequantized_weight(e, site, weight)
        node.replace_input_with(site.weight, dequantized)
    return Emitted(node.name or "")


def _suits_integer_product(e: CodesEditor, site: Site, params: OpParameters) -> bool:
    """True for a MatMul of bytes whose result stays float, or that has a bias."""
    if site.kind not in PRODUCTS or site.node.op_type != "MatMul":
        return False
    # QLinearMatMul, which pairs around a MatMul fuse into, takes no bias.
    if e.flows(site.op.outputs[0]) and site.bias is None:
        return False
    given = list(params.inputs)
    if params.weight is not None:
        given.append(params.weight.params)
    return all(p is None or p.spec.bits == 8 for p in given)


def _write_bias(
    e: CodesEditor, site: Site, params: OpParameters, weight: QuantizedTensor
) -> QuantizedTensor:
    """Write an op's bias in codes; return the weight to use with it."""
    bias = e.bias(site, params)
    if bias is None:
        return weight
    if site.node.op_type == "MatMul":
        if params.bias is not None:
            _correct_added_bias(e, site, params.bias)
        return weight
    # The scale is the producer's, where its codes flow here.
    scale = e.activation(site, 0, params.inputs[0]).scale.const_value
    assert scale is not None
    x_scale = float(scale.numpy())
    codes, bias_scale, weight = bias_tensors(bias, weight, x_scale)
    dequantized = _dequantized_bias(e, site, codes, bias_scale)
    replace_input(e.nodes[site.name], 2, dequantized)
    return weight


def _correct_added_bias(e: CodesEditor, site: Site, bias: np.ndarray) -> None:
    """Exchange the constant of the Add behind a product."""
    if site.bias is None:
        raise SchemeError(
            f"op {site.name!r} has no bias to correct in this form; "
            "leave bias correction out for it"
        )
    product = e.nodes[site.name].outputs[0]
    for user, index in tuple(e.values[site.bias].uses()):
        if product in user.inputs:
            corrected = tensor(bias, ir.DataType.FLOAT, "bias")
            held = e.initializer(f"{site.bias}_corrected", corrected)
            user.replace_input_with(index, held)


def _dequantized_weight(
    e: CodesEditor, site: Site, weight: QuantizedTensor
) -> ir.Value:
    packed = weight_tensors(weight)
    name = site.name
    # ONNX Runtime 1.20 to 1.32 fuses convolutions without zero points of the weight; a Gemm stays
    # float.
    is_product = site.kind in PRODUCTS
    node = dequantize_linear(
        shared_weight(e, site.held.name, packed, asks_for_zero=is_product),
        name=f"{name}_weight_DequantizeLinear",
        result=f"{name}_weight",
        axis=packed.axis,
        domain=e.pair_domain(packed.codes.dtype),
    )
    e.before(e.nodes[name], [node])
    return node.outputs[0]


def _dequantized_bias(
    e: CodesEditor, site: Site, codes: ir.TensorProtocol, scale: ir.TensorProtocol
) -> ir.Value:
    name = site.name
    held = e.initializer(f"{name}_bias_quantized", codes)
    node = dequantize_linear(
        [held, e.initializer(f"{name}_bias_scale", scale)],
        name=f"{name}_bias_DequantizeLinear",
        result=f"{name}_bias",
        axis=0 if scale.shape.rank() else None,
    )
    e.before(e.nodes[name], [node])
    return node.outputs[0]
