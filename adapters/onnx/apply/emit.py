"""Carrying a recipe out: quantized operations take the place of float ones in a clone of the prepared graph.

Static schemes are written as QuantizeLinear/DequantizeLinear pairs in the places where ONNX Runtime fuses them into
integer kernels, so that codes flow from operation to operation: through residual adds, pooling and reshapes. A matrix
product whose result stays float, and every dynamic one, is written as MatMulIntegerToFloat, which takes the bias along.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from octavo.adapters.onnx.describe.sites import Site, Sites
from octavo.core.contract.adapter import OpParameters
from octavo.core.errors import SchemeError
from octavo.core.numerics.tensor import QuantizedTensor

from .editing import Codes, Editor, Emitted
from .packing import bias_tensors, tensor, weight_tensors
from .recurrent import dynamic_lstm
from .weight_only import MS, gather_blocks, matmul_nbits


def emit(
    model: ir.Model, sites: Sites, parameters: Mapping[str, OpParameters]
) -> tuple[ir.Model, Mapping[str, Emitted]]:
    """Carry the parameters of every op out.

    Args:
        model: The prepared model; not changed. Every tensor is shared with it.
        sites: Its operations.
        parameters: What the core decided, by op name; ops left out stay float.

    Returns:
        The quantized model, and what was written for each op.

    Raises:
        SchemeError: If parameters are missing, or a weight cannot be packed.
    """
    editor = Editor(model, sites, parameters)
    for name, given in parameters.items():
        _WRITERS[given.scheme.mode](editor, sites.sites[name], given)
    return editor.finish(), editor.emitted


def _dequantized_weight(e: Editor, site: Site, weight: QuantizedTensor) -> ir.Value:
    assert site.op.weight is not None
    codes, scale, zero, axis = weight_tensors(weight)
    name = site.op.weight.name
    inputs = [
        e.shared(f"{name}_quantized", codes),
        e.shared(f"{name}_scale", scale),
        e.shared(f"{name}_zero", zero),
    ]
    domain = e.pair_domain(codes.dtype)
    node = ir.node(
        "DequantizeLinear",
        inputs,
        {"axis": axis} if axis is not None else None,
        domain=domain,
        name=f"{site.op.name}_weight_DequantizeLinear",
    )
    node.outputs[0].name, node.outputs[0].type = (
        f"{site.op.name}_weight",
        ir.TensorType(ir.DataType.FLOAT),
    )
    e.before(e.nodes[site.op.name], [node])
    return node.outputs[0]


def _dequantized_bias(
    e: Editor, site: Site, codes: ir.TensorProtocol, scale: ir.TensorProtocol
) -> ir.Value:
    inputs = [
        e.initializer(f"{site.op.name}_bias_quantized", codes),
        e.initializer(f"{site.op.name}_bias_scale", scale),
    ]
    node = ir.node(
        "DequantizeLinear",
        inputs,
        {"axis": 0} if scale.shape.rank() else None,
        name=f"{site.op.name}_bias_DequantizeLinear",
    )
    node.outputs[0].name, node.outputs[0].type = (
        f"{site.op.name}_bias",
        ir.TensorType(ir.DataType.FLOAT),
    )
    e.before(e.nodes[site.op.name], [node])
    return node.outputs[0]


def _static(e: Editor, site: Site, params: OpParameters) -> None:
    plain = not e.flows(site.op.outputs[0]) or site.bias is not None  # QLinearMatMul takes no bias
    bytes_ = all(
        p is None or p.spec.bits == 8
        for p in (params.weight.params if params.weight is not None else None, *params.inputs)
    )
    if site.op.type in _PRODUCTS and site.node.op_type == "MatMul" and plain and bytes_:
        _integer_product(e, site, params, e.activation(site, 0, params.inputs[0]))
        return
    node = e.nodes[site.op.name]
    for position, index in enumerate(site.inputs):
        node.replace_input_with(
            index, e.dequantized_at(node, e.activation(site, position, params.inputs[position]))
        )
    result = node
    if site.weight is not None and params.weight is not None:
        weight, bias = params.weight, e.bias(site, params)
        if bias is not None and site.node.op_type != "MatMul":
            x = params.inputs[0]
            held = e.activation(
                site, 0, x
            ).scale.const_value  # the producer's, where its codes flow here
            assert held is not None
            codes, scale, weight = bias_tensors(bias, weight, float(held.numpy()))
            if len(node.inputs) < 3:
                node.resize_inputs(3)
            node.replace_input_with(2, _dequantized_bias(e, site, codes, scale))
        elif params.bias is not None:
            _replace_added_bias(e, site, params)
        node.replace_input_with(site.weight, _dequantized_weight(e, site, weight))
    e.emitted[site.op.name] = Emitted(result.name or "", site.op.outputs[0])


def _replace_added_bias(e: Editor, site: Site, params: OpParameters) -> None:
    if site.bias is None:
        raise SchemeError(
            f"op {site.op.name!r} has no bias to correct in this form; leave bias correction out for it"
        )
    for user, index in tuple(e.values[site.bias].uses()):
        if e.nodes[site.op.name].outputs[0] in user.inputs:
            user.replace_input_with(
                index,
                e.initializer(
                    f"{site.bias}_corrected", tensor(params.bias, ir.DataType.FLOAT, "bias")
                ),
            )


def _integer_product(e: Editor, site: Site, params: OpParameters, x: Codes) -> None:
    """y = MatMulIntegerToFloat(x, w) + bias: integer product, float result, in one kernel."""
    assert params.weight is not None and site.op.weight is not None
    transposed = site.op.weight.channel_axis == 0
    codes, scale, zero, _ = weight_tensors(params.weight, transposed=transposed)
    name = site.op.weight.name
    tag = "kn" if transposed else ""
    inputs: list[ir.Value | None] = [
        x.codes, e.shared(f"{name}{tag}_quantized", codes), x.scale, e.shared(f"{name}_scale", scale), x.zero_point, e.shared(f"{name}_zero", zero),
    ]  # fmt: skip
    bias = e.bias(site, params)
    if bias is not None:
        inputs.append(
            e.initializer(f"{site.op.name}_bias", tensor(bias, ir.DataType.FLOAT, "bias"))
        )
    product = ir.node("MatMulIntegerToFloat", inputs, domain=MS)
    e.replace(site, [product], until=site.before_activation)
    e.emitted[site.op.name] = Emitted(site.op.name, site.op.outputs[0])


_PRODUCTS = ("linear", "batched_linear")


def _decoded(e: Editor, site: Site, params: OpParameters) -> None:
    """Store the weights of an op in codes, and write them back to float before it."""
    assert site.weight is not None and params.weight is not None
    node = e.nodes[site.op.name]
    for offset, (held, weight) in enumerate(
        zip(site.op.weights, (params.weight, *params.further), strict=True)
    ):
        codes, scale, zero, axis = weight_tensors(weight)
        inputs = [
            e.shared(f"{held.name}_quantized", codes),
            e.shared(f"{held.name}_scale", scale),
            e.shared(f"{held.name}_zero", zero),
        ]
        attributes = {"axis": axis} if axis is not None else None
        made = ir.node(
            "DequantizeLinear",
            inputs,
            attributes,
            name=f"{site.op.name}_weight_{offset}_DequantizeLinear",
        )
        made.outputs[0].name, made.outputs[0].type = (
            f"{site.op.name}_weight_{offset}",
            ir.TensorType(ir.DataType.FLOAT),
        )
        e.before(node, [made])
        node.replace_input_with(site.weight + offset, made.outputs[0])
    e.emitted[site.op.name] = Emitted(site.op.name, site.op.outputs[0])


def _weight_only(e: Editor, site: Site, params: OpParameters) -> None:
    if params.weight is not None and params.weight.params.spec.group_size is None:
        _decoded(e, site, params)
        return
    node = (
        gather_blocks(e, site, params)
        if site.op.type == "embedding"
        else matmul_nbits(e, site, params)
    )
    e.replace(site, [node], until=site.before_activation)
    e.emitted[site.op.name] = Emitted(site.op.name, site.op.outputs[0])


def _dynamic(e: Editor, site: Site, params: OpParameters) -> None:
    if params.weight is not None and params.weight.params.spec.group_size:
        _weight_only(e, site, params)
        return
    if site.op.type == "lstm":
        dynamic_lstm(e, site, params)
        return
    x = e.dynamic_activation(site)
    if site.op.type in _PRODUCTS:
        _integer_product(e, site, params, x)
        return
    assert params.weight is not None and site.op.weight is not None
    codes, scale, zero, _ = weight_tensors(params.weight)
    name, node = site.op.weight.name, e.nodes[site.op.name]
    rank = len(site.op.weight.shape)
    attributes = dict(node.attributes)
    inputs: list[ir.Value | None] = [x.codes, e.shared(f"{name}_quantized", codes), x.zero_point]
    if (
        not params.weight.params.spec.symmetric
    ):  # the kernel takes one zero point, not one a channel; 0 is left out
        inputs.append(e.shared(f"{name}_zero", zero))
    product = ir.node("ConvInteger", inputs, attributes)
    cast = ir.node("Cast", [product.outputs[0]], {"to": ir.DataType.FLOAT.value})
    column = np.asarray(scale.numpy())
    shaped = e.initializer(
        f"{name}_scale",
        tensor(
            column.reshape(-1, *(1,) * (rank - 2)) if column.ndim else column,
            ir.DataType.FLOAT,
            "scale",
        ),
    )
    factor = ir.node("Mul", [x.scale, shaped])
    nodes = [product, cast, factor, ir.node("Mul", [cast.outputs[0], factor.outputs[0]])]
    bias = e.bias(site, params)
    if bias is not None:
        held = e.initializer(
            f"{site.op.name}_bias",
            tensor(bias.reshape(-1, *(1,) * (rank - 2)), ir.DataType.FLOAT, "bias"),
        )
        nodes.append(ir.node("Add", [nodes[-1].outputs[0], held]))
    e.replace(site, nodes, until=site.node)
    e.emitted[site.op.name] = Emitted(
        f"{site.op.name}_ConvInteger_0", f"{site.op.name}_ConvInteger_0_output"
    )


def _cast(e: Editor, site: Site, params: OpParameters) -> None:
    e.emitted[site.op.name] = Emitted(
        *e.islands.write(site, params),
        half=params.scheme.weight.dtype if params.scheme.weight else "",
    )


_WRITERS: Mapping[str, Callable[[Editor, Site, OpParameters], None]] = {
    "static": _static,
    "dynamic": _dynamic,
    "weight_only": _weight_only,
    "cast": _cast,
}
