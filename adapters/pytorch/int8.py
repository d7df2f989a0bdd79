"""Linear and convolution layers on integer kernels."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from octavo.core.numerics.affine import QuantParams, integer_range
from octavo.core.numerics.tensor import QuantizedTensor

from . import kernels

Tensor = torch.Tensor


class Activation:
    """Scale and zero point of uint8 codes, as plain numbers.

    Attributes:
        scale: The scale.
        zero_point: In uint8 terms: a signed scheme's is shifted by 128.
        low: Smallest code.
        high: Largest code.
    """

    __slots__ = ("high", "low", "scale", "zero_point")

    def __init__(self, scale: float, zero_point: int, low: int = 0, high: int = 255) -> None:
        self.scale, self.zero_point, self.low, self.high = scale, zero_point, low, high

    @classmethod
    def of(cls, params: QuantParams) -> Activation:
        """Return the uint8 form of per-tensor parameters; signed ones are shifted by 128."""
        low, high = integer_range(params.spec)
        shift = 128 if low < 0 else 0
        return cls(float(params.scale), int(params.zero_point) + shift, low + shift, high + shift)

    def key(self) -> tuple[float, int, int, int]:
        """Return what makes two of them equal."""
        return (self.scale, self.zero_point, self.low, self.high)

    def quantize(self, x: Tensor) -> Tensor:
        """Return the codes of ``x``."""
        return kernels.quantize_u8(x, self.scale, self.zero_point, self.low, self.high)


class Quantize(nn.Module):
    """Float values -> uint8 codes; shared by all layers that read one value alike."""

    def __init__(self, activation: Activation) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Return the codes of ``x``."""
        return self.activation.quantize(x)


_packed: weakref.WeakKeyDictionary[QuantizedTensor, dict[object, Tensor]] = weakref.WeakKeyDictionary()


class Int8Layer(nn.Module):
    """What both kinds share: codes, scales, bias, how the input becomes codes and what comes out.

    Args:
        weight: int8 codes, symmetric, per tensor or per output channel.
        bias: float32 or None.
        dtype: Of a float result.
        source: Static parameters of the input; None for dynamic ones.
        takes_codes: The input is uint8 already.
        gives: Parameters of a uint8 result; None for a float one.
        symmetric: A dynamic range is centred on zero.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor
    bias: Tensor | None

    def __init__(
        self,
        weight: QuantizedTensor,
        bias: Tensor | None,
        dtype: torch.dtype,
        source: Activation | None,
        *,
        takes_codes: bool = False,
        gives: Activation | None = None,
        symmetric: bool = False,
    ) -> None:
        super().__init__()
        self.symmetric = symmetric
        self.register_buffer("codes", weight.codes)
        scale = weight.params.scale.reshape(-1).to(torch.float32)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if bias is None else bias.detach().to(torch.float32))
        self.register_buffer("zero_point", torch.zeros(scale.numel(), dtype=torch.int32), persistent=False)
        self.dtype = dtype
        self.source = source
        self.takes_codes = takes_codes
        self.gives = gives
        self._weight: Callable[[], QuantizedTensor | None] = weakref.ref(weight)
        self._packed: Tensor | None = None

    def _pack(self) -> Tensor:
        raise NotImplementedError

    def _pack_key(self) -> object:
        raise NotImplementedError

    def packed(self) -> Tensor:
        """Return the weight as the kernel wants it; laid out at the first call and shared by all users of one weight."""
        if self._packed is None:
            weight = self._weight()
            if weight is None or weight.codes is not self.codes:
                self._packed = self._pack()
            else:
                known = _packed.setdefault(weight, {})
                key = self._pack_key()
                if key not in known:
                    known[key] = self._pack()
                self._packed = known[key]
        return self._packed

    def __getstate__(self) -> dict[str, Any]:
        # The packed layout is the machine's own: it is made again where the layer lands.
        return {**self.__dict__, "_packed": None, "_weight": _gone}

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._packed = None
        self._weight = _gone

    def _measure(self, x: Tensor) -> Activation:
        low, high = (float(v) for v in torch.aminmax(x)) if x.numel() else (0.0, 0.0)
        if self.symmetric:
            return Activation(max(-low, high) / 127 or 1.0, 128, 1, 255)
        low, high = min(low, 0.0), max(high, 0.0)
        scale = (high - low) / 255 or 1.0
        return Activation(scale, min(255, max(0, round(-low / scale))))

    def _result(self) -> tuple[float, int, torch.dtype]:
        if self.gives is None:
            return 1.0, 0, self.dtype
        return self.gives.scale, self.gives.zero_point, torch.uint8


def _gone() -> None:
    """Stand in for a weak reference whose object is gone."""
    return


class Int8Linear(Int8Layer):
    """y = x W^T + b with int8 products and int32 sums. ``per_token`` gives every row of the input a scale of its own."""

    def __init__(self, *args: Any, per_token: bool = False, transposed: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.per_token = per_token
        self.transposed = transposed

    def _pack_key(self) -> object:
        return "linear"

    def _pack(self) -> Tensor:
        return kernels.pack_linear(self.codes.t().contiguous() if self.transposed else self.codes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output: float, or uint8 codes if it gives codes."""
        source = self.source
        if source is None:
            if self.per_token:
                return self._per_token(x)
            source = self._measure(x)
        codes = x if self.takes_codes else source.quantize(x)
        out = self._result()
        return kernels.linear_u8(codes, source.scale, source.zero_point, self.packed(), self.scale, self.zero_point, self.bias, *out)

    def _per_token(self, x: Tensor) -> Tensor:
        largest = torch.linalg.vector_norm(x, ord=float("inf"), dim=-1, keepdim=True, dtype=torch.float32)
        scale = torch.where(largest > 0, largest / 127, 1.0)
        codes = kernels.quantize_u8(x / scale, 1.0, 128, 1, 255)
        y = kernels.linear_u8(codes, 1.0, 128, self.packed(), self.scale, self.zero_point, None)
        y = y.mul_(scale) if self.bias is None else torch.addcmul(self.bias, y, scale)
        return y.to(self.dtype)

    def extra_repr(self) -> str:
        """Return its shape and mode."""
        mode = "static" if self.source else "dynamic, per token" if self.per_token else "dynamic"
        return f"{tuple(self.codes.shape)}, int8 {mode}"


class Int8Conv(Int8Layer):
    """A convolution with int8 products; bias, residual add and ReLU run inside the kernel.

    Args:
        geometry: Stride, symmetric padding, dilation, groups.
        pads: Extra zeros (as ``torch.nn.functional.pad`` takes them) where the padding is not symmetric.
        relu: Clamp the result at zero.
        other: Parameters of the uint8 tensor that is added, or None.
    """

    def __init__(
        self,
        *args: Any,
        geometry: kernels.Geometry,
        pads: tuple[int, ...] = (),
        relu: bool = False,
        other: Activation | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.geometry = geometry
        self.pads = pads
        self.relu = relu
        self.other = other
        self.format = torch.channels_last if self.codes.ndim == 4 else torch.contiguous_format

    def _pack_key(self) -> object:
        return ("conv", repr(self.geometry))

    def _pack(self) -> Tensor:
        source = self.source or Activation(1.0, 128)
        return kernels.pack_conv(self.codes, self.scale, source.scale, source.zero_point, self.geometry)

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """Return the layer's output. ``other`` is uint8 where the result is, else float, and may be overwritten."""
        source = self.source or self._measure(x)
        if self.takes_codes:
            codes = x
        else:
            codes = source.quantize(x.contiguous(memory_format=self.format))
        if self.pads:
            codes = nn.functional.pad(codes, self.pads, value=source.zero_point)
        codes = codes.contiguous(memory_format=self.format)
        if other is not None:
            other = other.contiguous(memory_format=self.format)
        added = (1.0, 0) if self.other is None or self.gives is None else (self.other.scale, self.other.zero_point)
        return kernels.conv_u8(
            codes,
            source.scale,
            source.zero_point,
            self.packed(),
            self.scale,
            self.zero_point,
            self.bias,
            self.geometry,
            *self._result(),
            self.relu,
            other,
            *added,
        )

    def extra_repr(self) -> str:
        """Return its shape and mode."""
        return f"{tuple(self.codes.shape)}, int8 {'static' if self.source else 'dynamic'}{', relu' if self.relu else ''}"
