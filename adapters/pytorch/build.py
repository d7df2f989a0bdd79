"""Quantized layers from what the core decided."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from octavo.core.adapter import OpParameters

from .int8 import Activation, Int8Conv, Int8Linear
from .layers import Layer, conv_pads, is_transposed_linear


def quantized_module(
    layer: Layer,
    module: nn.Module,
    parameters: OpParameters,
    bias: torch.Tensor | None,
    *,
    takes_codes: bool = False,
    gives: Activation | None = None,
) -> nn.Module:
    """Return the module that carries a static or dynamic scheme out for a linear or convolution layer.

    Args:
        layer: The layer.
        module: The float module.
        parameters: From the core.
        bias: As the op uses it (batch norm folded, corrected), or None.
        takes_codes: Its input is quantized already.
        gives: Parameters of a uint8 result; None for a float one.
    """
    weight, scheme = parameters.weight, parameters.scheme
    assert weight is not None
    assert scheme.input is not None
    assert isinstance(module.weight, torch.Tensor)
    source = Activation.of(parameters.inputs[0]) if scheme.mode == "static" and parameters.inputs[0] is not None else None
    shared: dict[str, Any] = {"source": source, "takes_codes": takes_codes, "gives": gives, "symmetric": scheme.input.symmetric}
    if layer.op.type == "linear":
        per_token = scheme.input.granularity == "token"
        return Int8Linear(weight, bias, module.weight.dtype, per_token=per_token, transposed=is_transposed_linear(module), **shared).eval()
    assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    pads = conv_pads(module)
    n = len(pads) // 2
    even = pads[:n] == pads[n:]
    geometry = (list(module.stride), list(pads[:n]) if even else [0] * n, list(module.dilation), module.groups)
    extra = () if even else tuple(p for i in reversed(range(n)) for p in (pads[i], pads[n + i]))
    other = Activation.of(parameters.inputs[1]) if len(parameters.inputs) > 1 and parameters.inputs[1] is not None else None
    return Int8Conv(
        weight, bias, module.weight.dtype, geometry=geometry, pads=extra, relu="relu" in layer.fused, other=other, **shared
    ).eval()
