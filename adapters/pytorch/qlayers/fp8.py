"""Linear layers whose products are fp8.

Micikevicius et al. 2022, "FP8 Formats for Deep Learning": e4m3 for weights and activations, one
scale for a tensor or for each row.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from octavo.adapters.pytorch.kernels import accelerators
from octavo.adapters.pytorch.kernels.autocast import result_dtype
from octavo.adapters.pytorch.kernels.layouts import content, forget, layout
from octavo.adapters.pytorch.kernels.operators import is_portable, register
from octavo.adapters.pytorch.kernels.posts import post
from octavo.core.numerics.tensor import QuantizedTensor

from .differentiable import differentiable, needs_gradient
from .low_bit_layer import Coded, scaled

Tensor = torch.Tensor


class Fp8Linear(Coded):
    """y = then(x W^T + b) with products of fp8_e4m3fn; the input's scales are found at run time.

    Args:
        weight: Bit patterns (outputs, inputs), one scale for each output or for all.
        bias: Or None.
        dtype: Of the result.
        per_token: Every row of the input has a scale of its own, and every output too; else the
            tensors have one.
        transposed: The weight is stored as (inputs, outputs).
        factors: float32 (inputs,): the input is multiplied by it first.
        then: Activation function applied to the result.
    """

    codes: Tensor
    scale: Tensor
    bias: Tensor | None
    factors: Tensor | None

    def __init__(
        self,
        weight: QuantizedTensor,
        bias: Tensor | None,
        dtype: torch.dtype,
        *,
        per_token: bool,
        transposed: bool = False,
        factors: Tensor | None = None,
        then: str = "",
    ) -> None:
        super().__init__()
        codes = weight.codes
        if transposed:
            codes = codes.t()
        self.register_buffer("codes", codes.contiguous())
        scale = weight.params.scale.to(torch.float32)
        self.register_buffer("scale", scale)
        if bias is not None:
            bias = bias.detach().to(torch.float32)
        self.register_buffer("bias", bias)
        self.register_buffer("factors", factors)
        self.dtype = dtype
        self.per_token = per_token
        self.transposed = transposed
        self.then = then

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        forget(self.codes)
        forget(self.scale)

    def decoded_weight(self) -> Tensor:
        """Return the weight as float numbers, with what its input is multiplied by first."""
        numbers = self.codes.view(torch.float8_e4m3fn)
        weight = scaled(numbers, self.scale, 0)
        if self.factors is not None:
            weight = weight * self.factors
        if self.transposed:
            weight = weight.t()
        return weight.to(self.dtype)

    def forward(self, input: Tensor) -> Tensor:
        """Return the layer's output."""
        x = input  # torch.nn's name: a layer alone may be called by it
        if needs_gradient(x):
            return differentiable(self.forward, self._in_float, x)
        flat = x.reshape(-1, x.shape[-1])
        if self.factors is not None:
            flat = flat * self.factors
        y = self._product(flat)
        if self.bias is not None:
            y = y + self.bias
        y = post(self.then, y)
        y = y.to(result_dtype(self.dtype, y.device))
        places = x.shape[:-1]
        return y.view(*places, self.codes.shape[0])

    def _product(self, flat: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            return fp8_linear(flat, self.codes, self.scale, self.per_token)
        if is_portable():
            # Laid out inside the program, which must run where octavo is not.
            laid_out = _laid_out(self.codes, self.scale, self.per_token)
            outputs = self.codes.shape[0]
            return _multiplied(flat, outputs, laid_out, self.per_token)
        run: Any = torch.ops.octavo.fp8_linear
        values = flat.detach()
        y: Tensor = run(values, self.codes, self.scale, self.per_token)
        return y

    def _in_float(self, x: Tensor) -> Tensor:
        weight = self.decoded_weight()
        if self.transposed:
            weight = weight.t()
        values = x.float()
        y = nn.functional.linear(values, weight.float(), self.bias)
        y = post(self.then, y)
        return y.to(result_dtype(self.dtype, y.device))

    def extra_repr(self) -> str:
        """Return its shape and scales."""
        scales = "token" if self.per_token else "tensor"
        shape = tuple(self.codes.shape)
        return f"{shape}, fp8 dynamic per {scales}"


def _laid_out(codes: Tensor, scale: Tensor, per_token: bool) -> tuple[Tensor, Tensor]:
    packed = accelerators.pack_fp8(codes)
    if not per_token:
        return packed, scale
    more_outputs = packed.shape[0] - codes.shape[0]
    # The layout has outputs of zeros beyond those of the layer.
    scales = nn.functional.pad(scale, (0, more_outputs))
    return packed, scales


def _multiplied(
    x: Tensor, outputs: int, laid_out: tuple[Tensor, Tensor], per_token: bool
) -> Tensor:
    packed, scale = laid_out
    if not x.shape[0]:
        # Neither a range nor the kernel takes no rows.
        return x.new_empty((0, outputs), dtype=torch.bfloat16)
    rows, scales = accelerators.quantize_fp8(x, per_token)
    y = accelerators.linear_fp8(rows, scales, packed, scale)
    return y[:, :outputs].contiguous()


def fp8_linear(x: Tensor, codes: Tensor, scale: Tensor, per_token: bool) -> Tensor:
    """Return x W^T in bfloat16, its weight laid out at the first call.

    Args:
        x: Float values (rows, inputs).
        codes: uint8 bit patterns of fp8_e4m3fn (outputs, inputs).
        scale: float32 (outputs,), or one.
        per_token: Every row of ``x`` has a scale of its own, and every output too.
    """
    key = ("fp8", per_token, content(scale))
    laid_out = layout(codes, key, lambda: _laid_out(codes, scale, per_token))
    outputs = codes.shape[0]
    return _multiplied(x, outputs, laid_out, per_token)


def _result_form(x: Tensor, codes: Tensor, scale: Tensor, per_token: bool) -> Tensor:
    shape = (x.shape[0], codes.shape[0])
    return x.new_empty(shape, dtype=torch.bfloat16)


register(
    "fp8_linear(Tensor x, Tensor codes, Tensor scale, bool per_token) -> Tensor",
    fp8_linear,
    _result_form,
)
