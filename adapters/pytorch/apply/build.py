"""Quantized layers from what the core decided."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from octavo.adapters.pytorch.capture.layers import Layer, conv_pads
from octavo.adapters.pytorch.capture.links import Own
from octavo.adapters.pytorch.kernels.activation import Activation
from octavo.adapters.pytorch.modules.kinds import TRANSPOSED, is_table, is_transposed_linear
from octavo.adapters.pytorch.modules.shared_copy import copy_hooks, copy_settings, skeleton
from octavo.adapters.pytorch.qlayers.cast import Cast
from octavo.adapters.pytorch.qlayers.fp8 import Fp8Linear
from octavo.adapters.pytorch.qlayers.int8 import Int8Conv, Int8Linear
from octavo.adapters.pytorch.qlayers.int8_recurrent import Int8Recurrent
from octavo.adapters.pytorch.qlayers.low_bit_layer import Coded
from octavo.adapters.pytorch.qlayers.packed_weights import StoredWeight
from octavo.adapters.pytorch.qlayers.recurrent import StoredRecurrent
from octavo.adapters.pytorch.qlayers.transposed import Int8ConvTranspose
from octavo.adapters.pytorch.qlayers.weight_only import (
    WeightOnlyConv,
    WeightOnlyEmbedding,
    WeightOnlyLinear,
)
from octavo.core.contract.adapter import OpParameters
from octavo.core.numerics.tensor import QuantizedTensor

from .input_maps import Online, multipliers
from .tables import around


def quantized_module(
    layer: Layer,
    module: nn.Module,
    parameters: OpParameters,
    bias: torch.Tensor | None,
    *,
    gives: Activation | None = None,
    own: Own = (),
) -> nn.Module:
    """Return the module that carries a scheme out for one layer, with the float module's own settings beside it.

    Args:
        layer: The layer.
        module: The float module.
        parameters: From the core.
        bias: As the op uses it (batch norm folded, corrected), or None.
        gives: Parameters of a uint8 result; None for a float one.
        own: What a linear layer does to its input's channels first.
    """
    factors = multipliers(own) if parameters.scheme.mode != "cast" else None
    new = _made(layer, module, parameters, bias, gives, factors)
    if own and factors is None:
        assert isinstance(module.weight, torch.Tensor)
        assert layer.op.weight is not None
        new.register_forward_pre_hook(Online(own, module.weight, layer.op.weight.channel_axis))
    # Models look at a layer's stride, or at its weight.
    copy_settings(module, new)
    if isinstance(new, Coded) and isinstance(weight := module.weight, torch.Tensor):
        new.weight_shape = tuple(weight.shape)
    return new.eval()


def placed(module: nn.Module, new: nn.Module) -> nn.Module:
    """Return what takes a float module's place, with its hooks: its quantized layer, or what does the rest around that.

    Args:
        module: The float module.
        new: From :func:`quantized_module`.
    """
    outer = (
        around(module, new) if isinstance(new, WeightOnlyEmbedding) and is_table(module) else new
    )
    copy_hooks(module, outer)
    return outer


def _made(
    layer: Layer,
    module: nn.Module,
    parameters: OpParameters,
    bias: torch.Tensor | None,
    gives: Activation | None,
    factors: torch.Tensor | None,
) -> nn.Module:
    weight, scheme = parameters.weight, parameters.scheme
    assert weight is not None
    if isinstance(module, nn.RNNBase):
        kind = Int8Recurrent if scheme.mode == "dynamic" else StoredRecurrent
        return kind(module, (weight, *parameters.further))
    assert isinstance(module.weight, torch.Tensor)
    if scheme.mode == "cast":
        return _cast(layer, module, weight, bias)
    if scheme.mode == "weight_only":
        dtype = module.weight.dtype
        if layer.op.type == "embedding":
            return WeightOnlyEmbedding(
                weight, dtype, module if isinstance(module, nn.EmbeddingBag) else None
            )
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            return WeightOnlyConv(weight, bias, dtype, **_conv_form(layer, module))
        transposed = is_transposed_linear(module)
        return WeightOnlyLinear(
            weight, bias, dtype, transposed=transposed, factors=factors, then="".join(layer.fused)
        )
    assert scheme.input is not None
    if scheme.input.dtype == "fp8_e4m3fn":
        rows: dict[str, Any] = {
            "per_token": scheme.input.granularity == "token",
            "transposed": is_transposed_linear(module),
        }
        return Fp8Linear(
            weight, bias, module.weight.dtype, factors=factors, then="".join(layer.fused), **rows
        )
    shared: dict[str, Any] = {
        "source": static_form(parameters, 0),
        "gives": gives,
        "symmetric": scheme.input.symmetric,
    }
    if layer.op.type == "linear":
        per_token, transposed = scheme.input.granularity == "token", is_transposed_linear(module)
        more: dict[str, Any] = {
            "per_token": per_token,
            "transposed": transposed,
            "factors": factors,
        }
        return Int8Linear(
            weight, bias, module.weight.dtype, then="".join(layer.fused), **shared, **more
        )
    if isinstance(module, TRANSPOSED):
        form: Any = (
            module.stride,
            module.padding,
            module.output_padding,
            module.dilation,
            module.groups,
        )
        return Int8ConvTranspose(
            weight, bias, module.weight.dtype, geometry=form, then="".join(layer.fused), **shared
        )
    assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    return Int8Conv(
        weight,
        bias,
        module.weight.dtype,
        other=static_form(parameters, 1),
        **_conv_form(layer, module),
        **shared,
    )


def _conv_form(layer: Layer, module: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> dict[str, Any]:
    """Return geometry, extra zeros and activation function of a convolution."""
    pads = conv_pads(module)
    n = len(pads) // 2
    even = pads[:n] == pads[n:]
    geometry = (
        list(module.stride),
        list(pads[:n]) if even else [0] * n,
        list(module.dilation),
        module.groups,
    )
    extra = () if even else tuple(p for i in reversed(range(n)) for p in (pads[i], pads[n + i]))
    return {"geometry": geometry, "pads": extra, "then": "relu" if "relu" in layer.fused else ""}


def _cast(
    layer: Layer, module: nn.Module, weight: QuantizedTensor, bias: torch.Tensor | None
) -> nn.Module:
    """Return a twin of the module with 16-bit tensors; convolutions take their folded batch norm's bias."""
    twin = skeleton(module)
    twin._forward_hooks.clear()
    twin._forward_pre_hooks.clear()
    twin._parameters["weight"] = nn.Parameter(weight.codes, requires_grad=False)
    if bias is not None:
        twin._parameters["bias"] = nn.Parameter(
            bias.detach().to(weight.codes.dtype), requires_grad=False
        )
    then = layer.fused[-1] if layer.fused and layer.fused[-1] != "add" else ""
    assert isinstance(module.weight, torch.Tensor)
    return Cast(twin, module.weight.dtype, then, adds="add" in layer.fused).eval()


def tie(made: Mapping[str, nn.Module], parameters: Mapping[str, OpParameters]) -> None:
    """Let layers of one quantized weight hold its codes once, under two names, as float models tie a parameter.

    Args:
        made: Op name -> its quantized module.
        parameters: Op name -> what the core decided.
    """
    first: dict[tuple[int, type], Any] = {}
    for name, module in made.items():
        table: dict[str, Any]
        if isinstance(module, Cast):
            table, key = module.layer._parameters, "weight"
        elif isinstance(getattr(module, "weight_codes", None), StoredWeight):
            table, key = module._modules, "weight_codes"
        else:
            continue
        table[key] = first.setdefault((id(parameters[name].weight), type(table[key])), table[key])


def static_form(parameters: OpParameters, index: int) -> Activation | None:
    """Return the codes in which a static op takes its input; None where it takes float values."""
    given = (
        parameters.inputs[index]
        if parameters.scheme.mode == "static" and index < len(parameters.inputs)
        else None
    )
    return Activation.of(given) if given is not None else None
