"""Linear and convolution layers on integer kernels."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from octavo.core.numerics.tensor import QuantizedTensor

from . import kernels, products
from .activation import Activation, Memo

if TYPE_CHECKING:
    from .stacked import Stack

Tensor = torch.Tensor
_FEW_ROWS = 128
"""Up to so many rows a call of one kernel that also quantizes beats separate ones, codes that pass on to the next layer included."""


_packed: weakref.WeakKeyDictionary[QuantizedTensor, dict[object, Any]] = weakref.WeakKeyDictionary()


def shared_layout(weight: QuantizedTensor | None, key: object, make: Callable[[], Any]) -> Any:
    """Return what ``make`` makes of a weight: once while the weight lives, every time where it is gone."""
    known = {} if weight is None else _packed.setdefault(weight, {})
    if key not in known:
        known[key] = make()
    return known[key]


def _portable_range(x: Tensor, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Return scale and zero point of a dynamic range as tensors: what a compiler can follow."""
    low, high = x.float().amin().clamp(max=0), x.float().amax().clamp(min=0)
    if symmetric:
        scale = torch.maximum(-low, high) / 127
        return torch.where(scale > 0, scale, 1.0), torch.full((), 128.0, device=x.device)
    scale = (high - low) / 255
    scale = torch.where(scale > 0, scale, 1.0)
    return scale, torch.round(-low / scale).clamp(0, 255)


class Int8Layer(nn.Module):
    """What both kinds share: codes, scales, bias, how the input becomes codes and what comes out.

    Args:
        weight: int8 codes, symmetric, per tensor or per output channel.
        bias: float32 or None.
        dtype: Of a float result.
        source: Static parameters of the input; None for dynamic ones.
        gives: Parameters of a uint8 result; None for a float one.
        symmetric: A dynamic range is centred on zero.
        then: Activation function applied to the result.
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
        gives: Activation | None = None,
        symmetric: bool = False,
        then: str = "",
    ) -> None:
        super().__init__()
        self.register_buffer("codes", weight.codes)
        scale = weight.params.scale.reshape(-1).to(torch.float32)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if bias is None else bias.detach().to(torch.float32))
        self.register_buffer("zero_point", torch.zeros(scale.numel(), dtype=torch.int32), persistent=False)
        self.dtype = dtype
        self.source = source
        self.gives = gives
        self.symmetric = symmetric
        self.then = then
        self._weight: Callable[[], QuantizedTensor | None] = weakref.ref(weight)
        self._laid_out: dict[object, Any] = {}

    def laid_out(self, key: object, make: Callable[[], Any]) -> Any:
        """Return the weight as a kernel wants it: made at the first call, and shared by all users of one weight."""
        found = self._laid_out.get(key)
        if found is None:
            weight = self._weight()
            found = self._laid_out[key] = shared_layout(weight if weight is not None and weight.codes is self.codes else None, key, make)
        return found

    def __getstate__(self) -> dict[str, Any]:
        # The packed layout is the machine's own: it is made again where the layer lands.
        return {**self.__dict__, "_laid_out": {}, "_weight": gone}

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._forget()

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        self._forget()  # another device has other kernels
        return self

    def _forget(self) -> None:
        self._laid_out, self._weight = {}, gone

    def _portable_source(self, x: Tensor) -> tuple[Tensor, Tensor | float]:
        """Return codes less their zero point, as float32, and their scale, in operations that any compiler knows."""
        if self.source is not None:
            codes = x if x.dtype == torch.uint8 else self.source.quantize(x)
            return codes.float() - self.source.zero_point, self.source.scale
        scale, zero_point = _portable_range(x, self.symmetric)
        low = 1 if self.symmetric else 0
        return (torch.round(x.float() / scale) + zero_point).clamp(low, 255) - zero_point, scale

    def _portable_result(self, y: Tensor) -> Tensor:
        if self.gives is None:
            return y.to(self.dtype)
        return (torch.round(y / self.gives.scale) + self.gives.zero_point).clamp(0, 255).to(torch.uint8)

    def _result(self) -> tuple[float, int, torch.dtype]:
        if self.gives is None:
            return 1.0, 0, self.dtype
        return self.gives.scale, self.gives.zero_point, torch.uint8

    def extra_repr(self) -> str:
        """Return its shape and mode."""
        return f"{tuple(self.codes.shape)}, int8 {'static' if self.source else 'dynamic'}{', ' + self.then if self.then else ''}"


def gone() -> None:
    """Stand in for a weak reference whose object is gone."""
    return


class Int8Linear(Int8Layer):
    """y = then(x W^T + b) with int8 products and int32 sums. It takes float values, or uint8 codes of its static input.

    Args:
        per_token: Every row of the input gets a scale of its own.
        transposed: The codes are stored as (inputs, outputs).
        factors: float32 (inputs,): the input is multiplied by it first (a rescaling that no other layer could take in).

    Attributes:
        outputs: Number of outputs.
        few: Up to so many input elements one kernel quantizes and multiplies; 0 where there is none for this layer.
        memo: Shared by layers that read one value alike, or None.
        stacked: The stack of such layers and the place in it, or None.
    """

    factors: Tensor | None
    stacked: tuple[Stack, int] | None

    def __init__(
        self,
        *args: Any,
        per_token: bool = False,
        transposed: bool = False,
        factors: Tensor | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.per_token = per_token
        self.transposed = transposed
        self.register_buffer("factors", factors)
        self.memo: Memo | None = None
        self.stacked = None
        self.outputs: int = self.codes.shape[1 if transposed else 0]
        self._choose()

    def _choose(self) -> None:
        """Find out what depends on the device."""
        self._steps = self.factors / self.source.scale if self.factors is not None and self.source is not None else None
        self.few = _FEW_ROWS * self.codes.shape[0 if self.transposed else 1] if self._fits_whole() else 0

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        super()._apply(*args, **kwargs)
        self._choose()
        return self

    def _forget(self) -> None:
        super()._forget()
        if self.stacked is not None:
            self.stacked[0].reset()

    def reading(self) -> object:
        """Return what makes two layers of one value read it alike."""
        factors = None if self.factors is None else self.factors.cpu().numpy().tobytes()
        return (self.source and self.source.key(), self.symmetric, self.per_token, factors)

    def _fits_whole(self) -> bool:
        """True if one kernel quantizes this layer's input and multiplies: over all 256 codes, per tensor, from float32 to float32."""
        source = self.source
        ranged = not (self.symmetric or self.per_token) if source is None else (source.low, source.high) == (0, 255)
        return ranged and self.dtype == torch.float32 and self.codes.device.type == "cpu" and not kernels.has_rows()

    def matrix(self) -> Tensor:
        """Return the codes as (outputs, inputs)."""
        return self.codes.t().contiguous() if self.transposed else self.codes

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output: float, or uint8 codes if it gives codes and the rows are many."""
        if torch.compiler.is_compiling():
            return self._portable(x)
        if x.numel() <= self.few and x.dtype == torch.float32:
            return self._whole(x)
        if x.dtype == torch.uint8:
            assert self.source is not None
            return self._multiply(x, self.source)
        if self.source is not None:
            codes = self.memo.get(x, self._codes) if self.memo is not None else self._codes(x)
            return self._multiply(codes, self.source)
        if self.per_token:
            codes, scale = self.memo.get(x, self._rows) if self.memo is not None else self._rows(x)
            return self._per_row(codes, scale)
        if self.factors is not None:
            x = x * self.factors
        source, codes = self.memo.get(x, self._measured) if self.memo is not None else self._measured(x)
        return self._multiply(codes, source)

    def _whole(self, x: Tensor) -> Tensor:
        y = None
        if self.stacked is not None and not x.is_inference():  # such a tensor has no version to tell that it was changed
            y = self.stacked[0].take(self.stacked[1], x)
        if y is None:
            packed = self._laid_out.get("rows")
            if packed is None:
                # The kernel keeps the bias beside the weight, so a weight with two biases is laid out twice.
                bias = b"" if self.bias is None else self.bias.numpy().tobytes()
                packed = self.laid_out(("rows", bias), lambda: kernels.pack_rows(self.matrix(), self.scale, self.bias))
                self._laid_out["rows"] = packed
            y = self.rows(x, packed)
        return kernels.post(self.then, y) if self.then else y

    def rows(self, x: Tensor, packed: Any) -> Tensor:
        """Return the product of a few rows and a weight laid out for them, which may be more than this layer's own."""
        if self.factors is not None:
            x = x * self.factors
        source = self.source
        return kernels.linear_rows(x, packed) if source is None else kernels.linear_rows(x, packed, source.scale, source.zero_point)

    def _portable(self, x: Tensor) -> Tensor:
        """Compute the same in operations that ``torch.export`` and ``torch.compile`` can follow: the kernel is opaque to them."""
        if self.factors is not None:
            x = x * self.factors
        scale: Tensor | float
        if self.per_token:
            codes, scale = kernels.quantize_rows(x)
            steps = codes.float() - 128
        elif self.factors is not None and self.source is not None:
            steps, scale = self.source.quantize(x).float() - self.source.zero_point, self.source.scale
        else:
            steps, scale = self._portable_source(x)
        weight = (self.codes.t() if self.transposed else self.codes).float()
        y = nn.functional.linear(steps, weight) * self.scale * scale
        y = y if self.bias is None else y + self.bias
        return self._portable_result(kernels.post(self.then, y))

    def _codes(self, x: Tensor) -> Tensor:
        assert self.source is not None
        return self.source.quantize(x, self._steps)

    def _rows(self, x: Tensor) -> tuple[Tensor, Tensor]:
        # The kernels have no gradient, and a float layer before this one may have been called outside of no_grad.
        return kernels.quantize_rows((x if self.factors is None else x * self.factors).detach())

    def _measured(self, x: Tensor) -> tuple[Activation, Tensor]:
        source = Activation.around(x, self.symmetric)
        return source, source.quantize(x)

    def _packed(self) -> Any:
        return self.laid_out("linear", lambda: products.on(self.codes.device).pack_linear(self.matrix()))

    def _multiply(self, codes: Tensor, source: Activation) -> Tensor:
        head = (codes, source.scale, source.zero_point, self._packed(), self.scale, self.zero_point, self.bias)
        y: Tensor = products.on(codes.device).linear_u8(*head, *self._result(), self.then)
        return y

    def _per_row(self, codes: Tensor, scale: Tensor) -> Tensor:
        y: Tensor = products.on(codes.device).linear_u8(codes, 1.0, 128, self._packed(), self.scale, self.zero_point, None)
        # In place: a fresh result of this size would cost more than the arithmetic.
        y = y.mul_(scale) if self.bias is None else torch.addcmul(self.bias, y, scale, out=y)
        return kernels.post(self.then, y).to(self.dtype)


class Int8Conv(Int8Layer):
    """A convolution with int8 products; bias, residual add and ReLU run inside the kernel.

    Args:
        geometry: Stride, symmetric padding, dilation, groups.
        pads: Extra zeros (as ``torch.nn.functional.pad`` takes them) where the padding is not symmetric.
        other: Parameters of the uint8 tensor that is added, or None.
    """

    def __init__(
        self, *args: Any, geometry: kernels.Geometry, pads: tuple[int, ...] = (), other: Activation | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.geometry = geometry
        self.pads = pads
        self.other = other

    @property
    def format(self) -> torch.memory_format:
        """How the kernel takes its tensors. Not an attribute: pickle may name a memory format by a module that the reader lacks."""
        return torch.channels_last if self.codes.ndim == 4 else torch.contiguous_format

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """Return the layer's output. ``other`` is uint8 where the result is, else float, and may be overwritten."""
        if torch.compiler.is_compiling():
            return self._portable(x, other)
        source = self.source or Activation.around(x, self.symmetric)
        codes = x if x.dtype == torch.uint8 else source.quantize(x.contiguous(memory_format=self.format))
        if self.pads:
            codes = nn.functional.pad(codes, self.pads, value=source.zero_point)
        codes = codes.contiguous(memory_format=self.format)
        if other is not None:
            other = other.contiguous(memory_format=self.format)
        added = (1.0, 0) if self.other is None or self.gives is None else (self.other.scale, self.other.zero_point)
        packed = self.laid_out(
            repr(self.geometry), lambda: kernels.pack_conv(self.codes, self.scale, source.scale, source.zero_point, self.geometry)
        )
        head = (codes, source.scale, source.zero_point, packed, self.scale, self.zero_point, self.bias, self.geometry)
        return kernels.conv_u8(*head, *self._result(), self.then == "relu", other, *added)

    def _portable(self, x: Tensor, other: Tensor | None) -> Tensor:
        steps, scale = self._portable_source(x)
        if self.pads:
            steps = nn.functional.pad(steps, self.pads)
        stride, padding, dilation, groups = self.geometry
        convolve = (nn.functional.conv1d, nn.functional.conv2d, nn.functional.conv3d)[self.codes.ndim - 3]
        shape = (1, -1, *[1] * (self.codes.ndim - 2))
        y = convolve(steps, self.codes.float(), None, stride, padding, dilation, groups) * self.scale.view(shape) * scale
        y = y if self.bias is None else y + self.bias.view(shape)
        if other is not None:
            codes = other.dtype == torch.uint8 and self.other is not None
            y = y + ((other.float() - self.other.zero_point) * self.other.scale if codes and self.other is not None else other)
        return self._portable_result(torch.relu(y) if self.then == "relu" else y)
