"""What linear layers and convolutions with int8 products have in common."""

from __future__ import annotations

from typing import Any

import torch

from octavo.adapters.pytorch.kernels.activation import Activation
from octavo.adapters.pytorch.kernels.arithmetic import Integers
from octavo.adapters.pytorch.kernels.autocast import result_dtype
from octavo.adapters.pytorch.kernels.layouts import forget
from octavo.adapters.pytorch.kernels.saturation import in_reach
from octavo.core.numerics.tensor import QuantizedTensor

from .differentiable import clipped, needs_gradient
from .low_bit_layer import Coded, scaled

Tensor = torch.Tensor


class Int8Layer(Coded, Integers):
    """Codes, scales and bias, how the input becomes codes, and what comes out.

    Args:
        weight: int8 codes, symmetric, per tensor or per output channel.
        bias: See :class:`~.arithmetic.Integers`, as for the other arguments.
    """

    def __init__(
        self,
        weight: QuantizedTensor,
        bias: Tensor | None,
        dtype: torch.dtype,
        source: Activation | None,
        *,
        gives: Activation | None = None,
        symmetric: bool = False,
        then: str = "",
    ) -> None:
        super().__init__()
        self.register_buffer("codes", weight.codes)
        scale = weight.params.scale.reshape(-1)
        self.register_buffer("scale", scale.to(torch.float32))
        if bias is not None:
            bias = bias.detach().to(torch.float32)
        self.register_buffer("bias", bias)
        self.dtype = dtype
        self.source = source
        self.gives = gives
        self.symmetric = symmetric
        self.then = then
        self.saturating = self._saturates()

    def _saturates(self) -> bool:
        """Return whether this machine's kernels would saturate on these codes.

        Float arithmetic then takes their place.
        """
        # Other devices sum in 32 bits.
        if self.codes.device.type != "cpu":
            return False
        return not in_reach(self.codes)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        super()._apply(*args, **kwargs)
        self.saturating = self._saturates()
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        for tensor in self.buffers(recurse=False):
            forget(tensor)
        self.saturating = self._saturates()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        # A pickled layer may have come from another machine.
        self.saturating = self._saturates()

    def decoded_weight(self) -> Tensor:
        """Return the weight as float numbers."""
        weight = scaled(self.codes, self.scale, self._channel_axis())
        return weight.to(self.dtype)

    def _channel_axis(self) -> int:
        return 0

    def _portable_source(self, x: Tensor) -> tuple[Tensor, Tensor | float]:
        """Return codes less their zero point, as float32, and their scale.

        In operations that any compiler knows.
        """
        if needs_gradient(x):
            return clipped(x.float(), self.source), 1.0
        source = self.source
        if source is not None:
            codes = x
            if x.dtype != torch.uint8:
                codes = source.quantize(x)
            return codes.float() - source.zero_point, source.scale
        scale, zero_point = _portable_range(x, self.symmetric)
        low = 1 if self.symmetric else 0
        steps = torch.round(x.float() / scale)
        codes = (steps + zero_point).clamp(low, 255)
        return codes - zero_point, scale

    def _portable_result(self, y: Tensor) -> Tensor:
        gives = self.gives
        if gives is None or needs_gradient(y):
            dtype = result_dtype(self.dtype, y.device)
            return y.to(dtype)
        steps = torch.round(y / gives.scale)
        codes = steps + gives.zero_point
        return codes.clamp(0, 255).to(torch.uint8)

    def extra_repr(self) -> str:
        """Return its shape and mode."""
        mode = "static" if self.source else "dynamic"
        then = f", {self.then}" if self.then else ""
        shape = tuple(self.codes.shape)
        return f"{shape}, int8 {mode}{then}"


def _portable_range(x: Tensor, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Return scale and zero point of a dynamic range as tensors: what a compiler can follow."""
    values = x.float()
    low = values.amin().clamp(max=0)
    high = values.amax().clamp(min=0)
    if symmetric:
        scale = torch.maximum(-low, high) / 127
        scale = torch.where(scale > 0, scale, 1.0)
        return scale, torch.full((), 128.0, device=x.device)
    scale = (high - low) / 255
    # A constant of zero has no range.
    scale = torch.where(scale > 0, scale, 1.0)
    zero_point = torch.round(-low / scale)
    return scale, zero_point.clamp(0, 255)
