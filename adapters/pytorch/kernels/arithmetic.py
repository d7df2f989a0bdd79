"""How linear layers and convolutions compute on integer kernels: one code for eager layers and for operators in compiled programs.

The classes are mixed into what holds the tensors and settings that they name: a module, or the arguments of one operator call.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import nn

from . import accelerators, fbgemm, onednn
from .activation import Activation
from .autocast import result_dtype
from .layouts import content, layout
from .memo import Memo
from .posts import post
from .rounding import quantize_rows
from .windows import Geometry, padded

Tensor = torch.Tensor
_FEW_ROWS = 128
"""Up to so many rows a call of one kernel that also quantizes beats separate ones, codes that pass on to the next layer included."""


class Stack(Protocol):
    """Layers that read one value alike, whose few rows are multiplied once for all of them."""

    def take(self, place: int, x: Tensor) -> Tensor | None:
        """Return the product of ``x`` and the weight at one place; None where each layer is left to itself."""


class Integers:
    """What both kinds share.

    Attributes:
        codes: int8, symmetric.
        scale: Of the codes, float32: one, or one for each output channel.
        bias: float32 or None.
        dtype: Of a float result.
        source: Static parameters of the input; None for dynamic ones.
        gives: Parameters of a uint8 result; None for a float one.
        symmetric: A dynamic range is centred on zero.
        then: Activation function applied to the result.
    """

    codes: Tensor
    scale: Tensor
    bias: Tensor | None
    dtype: torch.dtype
    source: Activation | None
    gives: Activation | None
    symmetric: bool
    then: str

    def result(self) -> tuple[float, int, torch.dtype]:
        """Return scale, zero point and dtype of the result."""
        if self.gives is None:
            return 1.0, 0, result_dtype(self.dtype, self.codes.device)
        return self.gives.scale, self.gives.zero_point, torch.uint8

    def _zero_point(self) -> Tensor:
        """Return the weight's zero points as kernels ask for them."""
        scale = self.scale
        zeros: Tensor = layout(
            scale,
            "zeros",
            lambda: torch.zeros(scale.numel(), dtype=torch.int32, device=scale.device),
        )
        return zeros


class LinearArithmetic(Integers):
    """y = then(x W^T + b).

    Attributes:
        per_token: Every row of the input gets a scale of its own.
        transposed: The codes are stored as (inputs, outputs).
        factors: float32 (inputs,): the input is multiplied by it first.
        memo: Shared by layers that read one value alike, or None.
        stacked: The stack of such layers and the place in it, or None.
        few: Up to so many input elements one kernel quantizes and multiplies; 0 where there is none for this layer.
    """

    per_token: bool
    transposed: bool
    factors: Tensor | None
    memo: Memo | None
    stacked: tuple[Stack, int] | None
    few: int
    _steps: Tensor | None

    @property
    def outputs(self) -> int:
        """Number of outputs."""
        return self.codes.shape[1 if self.transposed else 0]

    def reading(self) -> object:
        """Return what makes two layers of one value read it alike."""
        return (
            self.source and self.source.key(),
            self.symmetric,
            self.per_token,
            content(self.factors),
        )

    def choose(self) -> None:
        """Find out what depends on the device."""
        self._steps = (
            self.factors / self.source.scale
            if self.factors is not None and self.source is not None
            else None
        )
        self.few = (
            _FEW_ROWS * self.codes.shape[0 if self.transposed else 1] if self._fits_whole() else 0
        )

    def _fits_whole(self) -> bool:
        """True if one kernel quantizes this layer's input and multiplies: over all 256 codes, per tensor, from float32 to float32."""
        source = self.source
        ranged = (
            not (self.symmetric or self.per_token)
            if source is None
            else (source.low, source.high) == (0, 255)
        )
        return (
            ranged
            and self.dtype == torch.float32
            and self.codes.device.type == "cpu"
            and not fbgemm.missing_rows()
        )

    def is_few(self, x: Tensor) -> bool:
        """True if one kernel quantizes ``x`` and multiplies; its result is float. It takes no single row without an axis for rows."""
        small = x.numel() <= self.few and x.ndim > 1
        return small and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")

    def multiplied(self, x: Tensor) -> Tensor:
        """Return the layer's output: float, or uint8 codes if it gives codes and the rows are many."""
        if self.is_few(x):
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
        source, codes = (
            self.memo.get(x, self._measured) if self.memo is not None else self._measured(x)
        )
        return self._multiply(codes, source)

    def _whole(self, x: Tensor) -> Tensor:
        y = None
        if (
            self.stacked is not None and not x.is_inference()
        ):  # such a tensor has no version to tell that it was changed
            y = self.stacked[0].take(self.stacked[1], x)
        if y is None:
            y = self.rows(x, self.packed_rows())
        return post(self.then, y) if self.then else y

    def packed_rows(self) -> Any:
        """Return the weight as the kernel for few rows takes it."""
        # Scales and bias lie beside the weight, so a weight with two biases is laid out twice.
        key = ("rows", self.transposed, content(self.scale), content(self.bias))
        return layout(
            self.codes, key, lambda: fbgemm.pack_rows(self.matrix(), self.scale, self.bias)
        )

    def rows(self, x: Tensor, packed: Any) -> Tensor:
        """Return the product of a few rows and a weight laid out for them, which may be more than this layer's own."""
        if self.factors is not None:
            x = x * self.factors
        source = self.source
        return (
            fbgemm.linear_rows(x, packed)
            if source is None
            else fbgemm.linear_rows(x, packed, source.scale, source.zero_point)
        )

    def matrix(self) -> Tensor:
        """Return the codes as (outputs, inputs)."""
        return self.codes.t().contiguous() if self.transposed else self.codes

    def _codes(self, x: Tensor) -> Tensor:
        assert self.source is not None
        return self.source.quantize(x, self._steps)

    def _rows(self, x: Tensor) -> tuple[Tensor, Tensor]:
        # The kernels have no gradient, and a float layer before this one may have been called outside of no_grad.
        return quantize_rows((x if self.factors is None else x * self.factors).detach())

    def _measured(self, x: Tensor) -> tuple[Activation, Tensor]:
        source = Activation.around(x, self.symmetric)
        return source, source.quantize(x)

    def _packed(self) -> Any:
        codes = self.codes
        return layout(
            codes,
            ("linear", self.transposed),
            lambda: accelerators.on(codes.device).pack_linear(self.matrix()),
        )

    def _multiply(self, codes: Tensor, source: Activation) -> Tensor:
        head = (
            codes,
            source.scale,
            source.zero_point,
            self._packed(),
            self.scale,
            self._zero_point(),
            self.bias,
        )
        y: Tensor = accelerators.on(codes.device).linear_u8(*head, *self.result(), self.then)
        return y

    def _per_row(self, codes: Tensor, scale: Tensor) -> Tensor:
        y: Tensor = accelerators.on(codes.device).linear_u8(
            codes, 1.0, 128, self._packed(), self.scale, self._zero_point(), None
        )
        # In place: a fresh result of this size would cost more than the arithmetic.
        y = y.mul_(scale) if self.bias is None else torch.addcmul(self.bias, y, scale, out=y)
        return post(self.then, y).to(result_dtype(self.dtype, y.device))


def format_of(codes: Tensor) -> torch.memory_format:
    """Return how the kernels of convolutions take their tensors, for a weight of so many axes."""
    return torch.channels_last if codes.ndim == 4 else torch.contiguous_format


class ConvArithmetic(Integers):
    """A convolution; bias, residual add and ReLU run inside the kernel.

    Attributes:
        geometry: Stride, symmetric padding, dilation, groups.
        pads: Extra zeros (as ``torch.nn.functional.pad`` takes them) where the padding is not symmetric.
        other: Parameters of the uint8 tensor that is added, or None.
    """

    geometry: Geometry
    pads: tuple[int, ...]
    other: Activation | None

    def convolved(self, x: Tensor, other: Tensor | None) -> Tensor:
        """Return the layer's output. ``other`` is uint8 where the result is, else float, and may be overwritten."""
        source, form = self.source or Activation.around(x, self.symmetric), format_of(self.codes)
        codes = (
            x if x.dtype == torch.uint8 else source.quantize(x)
        )  # before it is laid out anew, since bytes move faster
        if self.pads:
            codes = nn.functional.pad(codes, self.pads, value=source.zero_point)
        # Here rather than in the kernel alone, so that the weight is laid out for the very geometry that runs.
        codes, geometry = padded(codes, source.zero_point, self.codes.shape, self.geometry)
        codes = codes.contiguous(memory_format=form)
        if other is not None:
            other = other.contiguous(memory_format=form)
        added = (
            (1.0, 0)
            if self.other is None or self.gives is None
            else (self.other.scale, self.other.zero_point)
        )
        key = ("conv", repr(geometry), self.scale.numel())
        packed = layout(
            self.codes,
            key,
            lambda: onednn.pack_conv(
                self.codes, self.scale, source.scale, source.zero_point, geometry
            ),
        )
        head = (
            codes,
            source.scale,
            source.zero_point,
            packed,
            self.scale,
            self._zero_point(),
            self.bias,
            geometry,
        )
        return onednn.conv_u8(*head, *self.result(), self.then == "relu", other, *added)
