"""LSTM layers: com.microsoft's DynamicQuantizeLSTM in their place."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from octavo.adapters.onnx.describe.site import Site
from octavo.adapters.onnx.prepare.patterns import input_at
from octavo.core.contract.adapter import OpParameters
from octavo.core.numerics.tensor import QuantizedTensor

from .editing import Editor
from .nodes import MS, Emitted
from .packing import WeightTensors, cached, dtype_of, scale_tensors, tensor, zero_tensor
from .widening import shared_weight


def _matrices(weight: QuantizedTensor) -> WeightTensors:
    """Return a weight as the kernel wants it; made once.

    Codes are (directions, inputs, 4 * hidden), scales and zero points (directions[, 4 * hidden]).
    The core has one scale for each row of a gate, or one for all; both directions share it.
    """

    def make() -> WeightTensors:
        params = weight.params
        dtype = dtype_of(params.spec.dtype)
        codes = np.asarray(weight.codes).transpose(0, 2, 1)
        directions, _, rows = codes.shape
        shape = [directions]
        if params.axis is not None:
            shape.append(rows)
        zero = zero_tensor(weight)
        if zero is not None:
            spread = np.broadcast_to(np.asarray(params.zero_point), shape)
            zero = tensor(spread, dtype, "zero_point")
        return WeightTensors(
            tensor(codes, dtype, "codes"),
            scale_tensors(weight)._replace(shape=tuple(shape)),
            zero,
            params.axis,
        )

    found: WeightTensors = cached(weight, "recurrent", make)
    return found


def write_dynamic_lstm(e: Editor, site: Site, params: OpParameters) -> Emitted:
    """Put DynamicQuantizeLSTM in the place of an LSTM.

    W and R are 8-bit; inputs and states are quantized at each step.
    """
    assert params.weight is not None
    old = e.nodes[site.name]
    weights = (params.weight, *params.further)
    quantized = []
    for held, weight in zip(site.op.weights, weights, strict=True):
        matrices = _matrices(weight)
        quantized.append(shared_weight(e, held.name, matrices, asks_for_zero=True))
    (w, w_scale, w_zero), (r, r_scale, r_zero) = quantized
    # B, sequence_lens, initial_h, initial_c, P
    rest = [input_at(old, index) for index in range(3, 8)]
    inputs = [old.inputs[0], w, r, *rest, w_scale, w_zero, r_scale, r_zero]
    attributes = dict(old.attributes)
    attributes.pop("layout", None)  # steps first: the kernel knows no other
    written = len(old.outputs)
    node = ir.node(
        "DynamicQuantizeLSTM", inputs, attributes, domain=MS, num_outputs=written
    )
    for before, after in zip(old.outputs[1:], node.outputs[1:], strict=True):
        e.take_over(after, before)
    e.replace(site, [node], until=old)
    return Emitted(site.name)
