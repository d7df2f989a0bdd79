"""Linear layers whose products are fp8.

Micikevicius et al. 2022, "FP8 Formats for Deep Learning": e4m3 for weights and activations, one scale for a tensor or for each row.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from octavo.core.numerics.tensor import QuantizedTensor

from . import products
from .kernels import post

Tensor = torch.Tensor


class Fp8Linear(nn.Module):
    """y = then(x W^T + b) with products of fp8_e4m3fn; the input's scales are found at run time.

    Args:
        weight: Bit patterns (outputs, inputs), one scale for each output or for all.
        bias: Or None.
        dtype: Of the result.
        per_token: Every row of the input has a scale of its own, and every output too; else the tensors have one.
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
        self.register_buffer("codes", (weight.codes.t() if transposed else weight.codes).contiguous())
        self.register_buffer("scale", weight.params.scale.to(torch.float32))
        self.register_buffer("bias", None if bias is None else bias.detach().to(torch.float32))
        self.register_buffer("factors", factors)
        self.dtype = dtype
        self.per_token = per_token
        self.then = then
        self._packed: tuple[Tensor, Tensor] | None = None

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._packed = None
        return super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._packed = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packed": None}

    def _layout(self) -> tuple[Tensor, Tensor]:
        packed = products.pack_fp8(self.codes)
        return packed, nn.functional.pad(self.scale, (0, packed.shape[0] - self.codes.shape[0])) if self.per_token else self.scale

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output."""
        if torch.compiler.is_compiling():
            packed, scale = self._layout()
        else:
            if self._packed is None:
                self._packed = self._layout()
            packed, scale = self._packed
        flat = x.reshape(-1, x.shape[-1])
        codes, scales = products.quantize_fp8(flat if self.factors is None else flat * self.factors, self.per_token)
        y = products.linear_fp8(codes, scales, packed, scale)[:, : self.codes.shape[0]]
        y = post(self.then, y if self.bias is None else y + self.bias)
        return y.to(self.dtype).view(*x.shape[:-1], -1)

    def extra_repr(self) -> str:
        """Return its shape and scales."""
        return f"{tuple(self.codes.shape)}, fp8 dynamic per {'token' if self.per_token else 'tensor'}"
