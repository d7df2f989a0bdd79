"""LSTM layers: com.microsoft's DynamicQuantizeLSTM in their place."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from octavo.adapters.onnx.describe.sites import Site
from octavo.core.contract.adapter import OpParameters
from octavo.core.numerics.tensor import QuantizedTensor

from .editing import Editor, Emitted
from .packing import cached, dtype_of, tensor
from .weight_only import MS


def _matrices(
    weight: QuantizedTensor,
) -> tuple[ir.TensorProtocol, ir.TensorProtocol, ir.TensorProtocol]:
    """Return codes (directions, inputs, 4 * hidden), scales and zero points (directions[, 4 * hidden]), as the kernel wants them.

    The core has one scale for each row of a gate, or one for all; both directions share it.
    """

    def make() -> tuple[ir.TensorProtocol, ir.TensorProtocol, ir.TensorProtocol]:
        dtype, codes = (
            dtype_of(weight.params.spec.dtype),
            np.asarray(weight.codes).transpose(0, 2, 1),
        )
        shape = (
            (codes.shape[0],) if weight.params.axis is None else (codes.shape[0], codes.shape[2])
        )
        scale, zero = (
            np.broadcast_to(np.asarray(v), shape)
            for v in (weight.params.scale, weight.params.zero_point)
        )
        return (
            tensor(codes, dtype, "codes"),
            tensor(scale, ir.DataType.FLOAT, "scale"),
            tensor(zero, dtype, "zero_point"),
        )

    found: tuple[ir.TensorProtocol, ir.TensorProtocol, ir.TensorProtocol] = cached(
        weight, "recurrent", make
    )
    return found


def dynamic_lstm(e: Editor, site: Site, params: OpParameters) -> None:
    """Put DynamicQuantizeLSTM in the place of an LSTM: 8-bit W and R; inputs and states are quantized at each step."""
    assert params.weight is not None
    old = e.nodes[site.op.name]
    quantized = []
    for held, weight in zip(site.op.weights, (params.weight, *params.further), strict=True):
        codes, scale, zero = _matrices(weight)
        quantized.append(
            (
                e.shared(f"{held.name}_quantized", codes),
                e.shared(f"{held.name}_scale", scale),
                e.shared(f"{held.name}_zero", zero),
            )
        )
    (w, w_scale, w_zero), (r, r_scale, r_zero) = quantized
    rest = [
        *old.inputs[3:],
        *[None] * (8 - len(old.inputs)),
    ]  # B, sequence_lens, initial_h, initial_c, P
    inputs = [old.inputs[0], w, r, *rest, w_scale, w_zero, r_scale, r_zero]
    attributes = {name: value for name, value in old.attributes.items() if name != "layout"}
    node = ir.node(
        "DynamicQuantizeLSTM", inputs, attributes, domain=MS, num_outputs=len(old.outputs)
    )
    for before, after in zip(old.outputs[1:], node.outputs[1:], strict=True):
        name = before.name
        after.type, after.shape = before.type, before.shape
        before.replace_all_uses_with(after, replace_graph_outputs=True)
        after.name, before.name = name, f"{name}_replaced"
        e.values[name or ""] = after
    e.replace(site, [node], until=old)
    e.emitted[site.op.name] = Emitted(site.op.name, site.op.outputs[0])
