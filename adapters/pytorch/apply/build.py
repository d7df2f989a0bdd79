"""Quantized modules in the places of float ones, with all that models look at on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from octavo.adapters.pytorch.capture.layers import Layer
from octavo.adapters.pytorch.capture.links import Own
from octavo.adapters.pytorch.kernels.activation import Activation
from octavo.adapters.pytorch.modules.kinds import is_table
from octavo.adapters.pytorch.modules.shared_copy import copy_hooks, copy_settings
from octavo.adapters.pytorch.qlayers.cast import Cast
from octavo.adapters.pytorch.qlayers.low_bit_layer import Coded
from octavo.adapters.pytorch.qlayers.packed_weights import StoredWeight
from octavo.adapters.pytorch.qlayers.weight_only import WeightOnlyEmbedding
from octavo.core.contract.adapter import OpParameters

from .input_maps import Online, multipliers
from .quantized_layers import Decided, quantized_layer
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
    """Return the module that carries a scheme out for one layer, with the float module's own
    settings beside it.

    Args:
        layer: The layer.
        module: The float module.
        parameters: From the core.
        bias: As the op uses it (batch norm folded, corrected), or None.
        gives: Codes of the result; None for a float one.
        own: What a linear layer does to its input's channels first.
    """
    # A cast layer computes in float: it has no quantization into which a multiplication could go.
    factors = multipliers(own) if parameters.scheme.mode != "cast" else None
    new = quantized_layer(Decided(layer, module, parameters, bias, gives, factors))
    if own and factors is None:
        assert isinstance(module.weight, torch.Tensor)
        assert layer.op.weight is not None
        new.register_forward_pre_hook(
            Online(own, module.weight, layer.op.weight.channel_axis)
        )
    # Models look at a layer's stride, or at its weight.
    copy_settings(module, new)
    if isinstance(new, Coded) and isinstance(weight := module.weight, torch.Tensor):
        new.weight_shape = tuple(weight.shape)
    return new.eval()


def placed(module: nn.Module, new: nn.Module) -> nn.Module:
    """Return what takes a float module's place, with its hooks.

    It is the quantized layer, or what does the rest around that.

    Args:
        module: The float module.
        new: From :func:`quantized_module`.
    """
    outer = new
    if isinstance(new, WeightOnlyEmbedding) and is_table(module):
        outer = around(module, new)
    copy_hooks(module, outer)
    return outer


def tie(made: Mapping[str, nn.Module], parameters: Mapping[str, OpParameters]) -> None:
    """Let layers of one quantized weight hold its codes once, under two names, as float models tie
    a parameter.

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
        held = table[key]
        table[key] = first.setdefault((id(parameters[name].weight), type(held)), held)
