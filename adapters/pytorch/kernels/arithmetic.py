"""How linear layers and convolutions compute on integer kernels.

One code for eager layers and for operators in compiled programs: the classes are mixed into what
holds the tensors and settings that they name, a module or the arguments of one operator call.
"""

from __future__ import annotations

from collections.abc import Callable
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
"""Up to so many rows a call of one kernel that also quantizes beats separate ones.

Codes that pass on to the next layer are counted in.
"""


class Stacked(Protocol):
    """Layers that read one value alike, whose weights are multiplied once."""

    def take(self, place: int, x: Tensor) -> Tensor | None:
        """Return the product of ``x`` and the weight at one place, float32.

        None where it is left to the layer.
        """


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

        def make() -> Tensor:
            return torch.zeros(scale.numel(), dtype=torch.int32, device=scale.device)

        zeros: Tensor = layout(scale, "zeros", make)
        return zeros


class LinearArithmetic(Integers):
    """y = then(x W^T + b).

    Attributes:
        per_token: Every row of the input gets a scale of its own.
        transposed: The codes are stored as (inputs, outputs).
        factors: float32 (inputs,): the input is multiplied by it first.
        memo: Shared by layers that read one value alike, or None.
        stacked: The stack of such layers and the place in it, or None.
        few: Up to so many input elements one kernel quantizes and multiplies; 0 where there is
            none for this layer.
    """

    per_token: bool
    transposed: bool
    factors: Tensor | None
    memo: Memo | None
    stacked: tuple[Stacked, int] | None
    few: int
    _steps: Tensor | None

    @property
    def outputs(self) -> int:
        """Number of outputs."""
        axis = 1 if self.transposed else 0
        return self.codes.shape[axis]

    def reading(self) -> object:
        """Return what makes two layers of one value read it alike."""
        static = self.source and self.source.key()
        factors = content(self.factors)
        return static, self.symmetric, self.per_token, factors

    def choose(self) -> None:
        """Find out what depends on the device."""
        self._steps = None
        if self.factors is not None and self.source is not None:
            self._steps = self.factors / self.source.scale
        axis = 0 if self.transposed else 1
        inputs = self.codes.shape[axis]
        self.few = _FEW_ROWS * inputs if self._fits_one_kernel() else 0

    def _fits_one_kernel(self) -> bool:
        """True if one kernel quantizes this layer's input and multiplies.

        It does so over all 256 codes, per tensor, from float32 to float32.
        """
        if self.source is None:
            takes_whole_range = not (self.symmetric or self.per_token)
        else:
            takes_whole_range = (self.source.low, self.source.high) == (0, 255)
        if not takes_whole_range or self.dtype != torch.float32:
            return False
        return self.codes.device.type == "cpu" and not fbgemm.missing_rows()

    def is_few(self, x: Tensor) -> bool:
        """True if one kernel quantizes ``x`` and multiplies; its result is float.

        It takes no single row without an axis for rows.
        """
        if x.numel() > self.few or x.ndim <= 1:
            return False
        return x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")

    def multiplied(self, x: Tensor) -> Tensor:
        """Return the layer's output.

        It is float, or uint8 codes if the layer gives codes and the rows are many.
        """
        if self.is_few(x):
            return self._by_one_kernel(x)
        if x.dtype == torch.uint8:
            assert self.source is not None
            return self._multiply(x, self.source)
        if self.source is not None:
            codes = self._shared(x, self._codes)
            return self._multiply(codes, self.source)
        if self.per_token:
            codes, scale = self._shared(x, self._rows)
            return self._per_row(codes, scale)
        if self.factors is not None:
            x = x * self.factors
        source, codes = self._shared(x, self._measured)
        return self._multiply(codes, source)

    def _shared(self, x: Tensor, make: Callable[[Tensor], Any]) -> Any:
        """Return what ``make`` makes of ``x``, once for all layers that read it alike."""
        if self.memo is None:
            return make(x)
        return self.memo.get(x, make)

    def _by_one_kernel(self, x: Tensor) -> Tensor:
        y = None
        # A tensor of inference mode has no version to tell that it was changed.
        if self.stacked is not None and not x.is_inference():
            stack, place = self.stacked
            y = stack.take(place, x)
        if y is None:
            y = self.rows(x, self.packed_rows())
        return post(self.then, y) if self.then else y

    def packed_rows(self) -> Any:
        """Return the weight as the kernel for few rows takes it."""
        # Scales and bias lie beside the weight, so a weight with two biases is laid out twice.
        key = ("rows", self.transposed, content(self.scale), content(self.bias))

        def make() -> Any:
            return fbgemm.pack_rows(self.matrix(), self.scale, self.bias)

        return layout(self.codes, key, make)

    def rows(self, x: Tensor, packed: Any) -> Tensor:
        """Return the product of a few rows and a weight laid out for them.

        The weight may be more than this layer's own.
        """
        if self.factors is not None:
            x = x * self.factors
        if self.source is None:
            return fbgemm.linear_rows(x, packed)
        return fbgemm.linear_rows(x, packed, self.source.scale, self.source.zero_point)

    def matrix(self) -> Tensor:
        """Return the codes as (outputs, inputs)."""
        if self.transposed:
            return self.codes.t().contiguous()
        return self.codes

    def _codes(self, x: Tensor) -> Tensor:
        assert self.source is not None
        return self.source.quantize(x, self._steps)

    def _rows(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scaled = x if self.factors is None else x * self.factors
        # The kernels have no gradient, and a float layer before this one may have been called
        # outside of no_grad.
        return quantize_rows(scaled.detach())

    def _measured(self, x: Tensor) -> tuple[Activation, Tensor]:
        source = Activation.around(x, self.symmetric)
        return source, source.quantize(x)

    def _packed(self) -> Any:
        codes = self.codes

        def make() -> Any:
            return accelerators.on(codes.device).pack_linear(self.matrix())

        return layout(codes, ("linear", self.transposed), make)

    def _multiply(self, codes: Tensor, source: Activation) -> Tensor:
        inputs = (codes, source.scale, source.zero_point)
        weight = (self._packed(), self.scale, self._zero_point(), self.bias)
        product = accelerators.on(codes.device).linear_u8
        y: Tensor = product(*inputs, *weight, *self.result(), self.then)
        return y

    def _per_row(self, codes: Tensor, scale: Tensor) -> Tensor:
        weight = (self._packed(), self.scale, self._zero_point(), None)
        y: Tensor = accelerators.on(codes.device).linear_u8(codes, 1.0, 128, *weight)
        # In place: a fresh result of this size would cost more than the arithmetic.
        if self.bias is None:
            y = y.mul_(scale)
        else:
            y = torch.addcmul(self.bias, y, scale, out=y)
        return post(self.then, y).to(result_dtype(self.dtype, y.device))


def format_of(codes: Tensor) -> torch.memory_format:
    """Return how the kernels of convolutions take their tensors, for a weight of so many axes."""
    return torch.channels_last if codes.ndim == 4 else torch.contiguous_format


class ConvArithmetic(Integers):
    """A convolution; bias, residual add and ReLU run inside the kernel.

    Attributes:
        geometry: Stride, symmetric padding, dilation, groups.
        pads: Extra zeros (as ``torch.nn.functional.pad`` takes them) where the padding is not
            symmetric.
        other: Parameters of the uint8 tensor that is added, or None.
    """

    geometry: Geometry
    pads: tuple[int, ...]
    other: Activation | None

    def convolved(self, x: Tensor, other: Tensor | None) -> Tensor:
        """Return the layer's output.

        Args:
            x: Float values or uint8 codes.
            other: What is added: uint8 where the result is, else float. It may be overwritten.
        """
        source = self.source or Activation.around(x, self.symmetric)
        form = format_of(self.codes)
        # Made before they are laid out anew, since bytes move faster.
        codes = x if x.dtype == torch.uint8 else source.quantize(x)
        if self.pads:
            codes = nn.functional.pad(codes, self.pads, value=source.zero_point)
        # Here rather than in the kernel alone, so that the weight is laid out for the very geometry
        # that runs.
        codes, geometry = padded(
            codes, source.zero_point, self.codes.shape, self.geometry
        )
        codes = codes.contiguous(memory_format=form)
        if other is not None:
            other = other.contiguous(memory_format=form)
        added = (1.0, 0)
        if self.other is not None and self.gives is not None:
            added = (self.other.scale, self.other.zero_point)
        inputs = (codes, source.scale, source.zero_point)
        weight = (self._packed(source, geometry), self.scale, self._zero_point())
        clamps = self.then == "relu"
        return onednn.conv_u8(
            *inputs, *weight, self.bias, geometry, *self.result(), clamps, other, *added
        )

    def _packed(self, source: Activation, geometry: Geometry) -> Tensor:
        """Return the weight as the kernel takes it."""
        # The key leaves the input's parameters out: dynamic ones are others at each call, and the
        # kernel is given those of the call.
        key = ("conv", repr(geometry), self.scale.numel())

        def make() -> Tensor:
            return onednn.pack_conv(
                self.codes, self.scale, source.scale, source.zero_point, geometry
            )

        packed: Tensor = layout(self.codes, key, make)
        return packed
