"""The quantized layer of each kind that carries out what the core decided for one op."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from octavo.adapters.pytorch.capture.layers import Layer, conv_pads
from octavo.adapters.pytorch.kernels.activation import Activation
from octavo.adapters.pytorch.modules.kinds import TRANSPOSED, is_transposed_linear
from octavo.adapters.pytorch.modules.shared_copy import skeleton
from octavo.adapters.pytorch.qlayers.cast import Cast
from octavo.adapters.pytorch.qlayers.fp8 import Fp8Linear
from octavo.adapters.pytorch.qlayers.int8 import Int8Conv, Int8Linear
from octavo.adapters.pytorch.qlayers.int8_recurrent import Int8Recurrent
from octavo.adapters.pytorch.qlayers.low_bit_layer import Coded
from octavo.adapters.pytorch.qlayers.recurrent import StoredRecurrent
from octavo.adapters.pytorch.qlayers.repaired import RepairedInt8Linear
from octavo.adapters.pytorch.qlayers.simulated import Simulated, is_simulated
from octavo.adapters.pytorch.qlayers.transposed import Int8ConvTranspose
from octavo.adapters.pytorch.qlayers.weight_only import (
    WeightOnlyConv,
    WeightOnlyEmbedding,
    WeightOnlyLinear,
)
from octavo.core.contract.adapter import OpParameters
from octavo.core.numerics.tensor import QuantizedTensor
from octavo.core.values.scheme import QuantSpec


@dataclass(frozen=True)
class Decided:
    """One layer, and what the core decided for it.

    Attributes:
        layer: The layer.
        module: The float module.
        parameters: From the core.
        bias: As the op uses it (batch norm folded, corrected), or None.
        gives: Codes of the result; None for a float one.
        factors: float32 (inputs,): a linear layer multiplies its input by it first; None where it
            does not.
    """

    layer: Layer
    module: nn.Module
    parameters: OpParameters
    bias: torch.Tensor | None
    gives: Activation | None
    factors: torch.Tensor | None

    @property
    def weight(self) -> QuantizedTensor:
        """The quantized weight."""
        assert self.parameters.weight is not None
        return self.parameters.weight

    @property
    def dtype(self) -> torch.dtype:
        """Type of the float module's weight."""
        assert isinstance(self.module.weight, torch.Tensor)
        return self.module.weight.dtype

    @property
    def then(self) -> str:
        """The activation function that a layer without an add takes in; empty if there is none."""
        return "".join(self.layer.fused)

    @property
    def is_transposed(self) -> bool:
        """Whether the weight of a linear layer is stored as (inputs, outputs)."""
        return is_transposed_linear(self.module)


def quantized_layer(decided: Decided) -> nn.Module:
    """Return the module that carries a scheme out for one layer."""
    module, scheme = decided.module, decided.parameters.scheme
    if isinstance(module, nn.RNNBase):
        kind = Int8Recurrent if scheme.mode == "dynamic" else StoredRecurrent
        return kind(module, (decided.weight, *decided.parameters.further))
    if scheme.mode == "cast":
        return _cast(decided)
    if scheme.mode == "weight_only":
        return _weight_only(decided)
    assert scheme.input is not None
    if scheme.input.dtype == "fp8_e4m3fn":
        return Fp8Linear(
            decided.weight,
            decided.bias,
            decided.dtype,
            factors=decided.factors,
            then=decided.then,
            per_token=scheme.input.granularity == "token",
            transposed=decided.is_transposed,
        )
    if is_simulated(scheme):
        return _simulated(decided, scheme.input)
    return _int8(decided)


def _simulated(decided: Decided, source: QuantSpec) -> nn.Module:
    given = None
    if decided.parameters.scheme.mode == "static":
        given = decided.parameters.inputs[0]
    stored = _weight_only(replace(decided, factors=None))
    assert isinstance(stored, Coded)
    return Simulated(
        stored,
        decided.dtype,
        source,
        given,
        decided.factors,
        transposed=decided.is_transposed,
    )


def static_form(parameters: OpParameters, index: int) -> Activation | None:
    """Return the codes in which a static op takes its input; None where it takes float values."""
    scheme = parameters.scheme
    if scheme.mode != "static" or index >= len(parameters.inputs):
        return None
    if is_simulated(scheme):
        return None
    given = parameters.inputs[index]
    return Activation.of(given) if given is not None else None


def _weight_only(decided: Decided) -> nn.Module:
    module, weight, bias = decided.module, decided.weight, decided.bias
    if decided.layer.op.type == "embedding":
        bag = module if isinstance(module, nn.EmbeddingBag) else None
        return WeightOnlyEmbedding(weight, decided.dtype, bag)
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return WeightOnlyConv(
            weight, bias, decided.dtype, **_conv_form(decided.layer, module)
        )
    return WeightOnlyLinear(
        weight,
        bias,
        decided.dtype,
        transposed=decided.is_transposed,
        factors=decided.factors,
        then=decided.then,
    )


def _int8(decided: Decided) -> nn.Module:
    source = decided.parameters.scheme.input
    assert source is not None
    shared: dict[str, Any] = {
        "source": static_form(decided.parameters, 0),
        "gives": decided.gives,
        "symmetric": source.symmetric,
    }
    module, head = decided.module, (decided.weight, decided.bias, decided.dtype)
    if decided.layer.op.type == "linear":
        repair = decided.weight.repair
        if repair is not None:
            shared["gives"] = None
        linear = Int8Linear(
            *head,
            then=decided.then if repair is None else "",
            per_token=source.granularity == "token",
            transposed=decided.is_transposed,
            factors=decided.factors,
            **shared,
        )
        if repair is None:
            return linear
        return RepairedInt8Linear(linear, repair, decided.then)
    if isinstance(module, TRANSPOSED):
        sizes = (module.stride, module.padding, module.output_padding, module.dilation)
        geometry: Any = (*sizes, module.groups)
        return Int8ConvTranspose(*head, geometry=geometry, then=decided.then, **shared)
    assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    other = static_form(decided.parameters, 1)
    return Int8Conv(*head, other=other, **_conv_form(decided.layer, module), **shared)


def _conv_form(
    layer: Layer, module: nn.Conv1d | nn.Conv2d | nn.Conv3d
) -> dict[str, Any]:
    """Return geometry, extra zeros and activation function of a convolution."""
    pads = conv_pads(module)
    n = len(pads) // 2
    before, after = pads[:n], pads[n:]
    padding, extra = list(before), []
    if before != after:
        # Kernels pad alike on both sides: the zeros are added to the input, the last axis first.
        padding = [0] * n
        for axis in reversed(range(n)):
            extra += [before[axis], after[axis]]
    geometry = (list(module.stride), padding, list(module.dilation), module.groups)
    then = "relu" if "relu" in layer.fused else ""
    return {"geometry": geometry, "pads": tuple(extra), "then": then}


def _cast(decided: Decided) -> nn.Module:
    """Return a twin of the module with 16-bit tensors; convolutions take their folded batch norm's
    bias."""
    twin = skeleton(decided.module)
    twin._forward_hooks.clear()
    twin._forward_pre_hooks.clear()
    weight, bias = decided.weight.codes, decided.bias
    twin._parameters["weight"] = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        narrow = bias.detach().to(weight.dtype)
        twin._parameters["bias"] = nn.Parameter(narrow, requires_grad=False)
    last = decided.layer.fused[-1] if decided.layer.fused else ""
    then = "" if last == "add" else last
    adds = "add" in decided.layer.fused
    return Cast(twin, decided.dtype, then, adds=adds).eval()
