"""Linear and convolution layers on integer kernels.

They run eagerly, in compiled programs and in exported ones.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from octavo.adapters.pytorch.kernels import fbgemm
from octavo.adapters.pytorch.kernels.activation import Activation
from octavo.adapters.pytorch.kernels.arithmetic import ConvArithmetic, LinearArithmetic
from octavo.adapters.pytorch.kernels.layouts import version_of
from octavo.adapters.pytorch.kernels.operators import is_portable, source_arguments
from octavo.adapters.pytorch.kernels.posts import post
from octavo.adapters.pytorch.kernels.rounding import quantize_rows
from octavo.adapters.pytorch.kernels.saturation import sums_fit
from octavo.adapters.pytorch.kernels.windows import Geometry

from .differentiable import as_values, differentiable, needs_gradient
from .int8_layer import Int8Layer

Tensor = torch.Tensor
_CONVOLUTIONS: Any = (nn.functional.conv1d, nn.functional.conv2d, nn.functional.conv3d)
_Held = tuple[Tensor, Tensor, Tensor | None, tuple[int, int, int], Any]
"""Codes, scale and bias, how often each was written to, and what was packed of them."""


class Int8Linear(Int8Layer, LinearArithmetic):
    """y = then(x W^T + b) with int8 products and int32 sums.

    It takes float values, or uint8 codes of its static input.

    Args:
        per_token: Every row of the input gets a scale of its own.
        transposed: The codes are stored as (inputs, outputs).
        factors: float32 (inputs,): the input is multiplied by it first (a rescaling that no other
            layer could take in).
    """

    transposed = False

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
        # Asked again: the axis that is summed over was not known before.
        self.saturating = self._saturates()
        self.register_buffer("factors", factors)
        self.memo = None
        self.stacked = None
        self._held: _Held | None = None
        self.choose()

    def _saturates(self) -> bool:
        if super()._saturates():
            return True
        output_axis = 1 if self.transposed else 0
        return not sums_fit(self.codes, output_axis)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        super()._apply(*args, **kwargs)
        self.choose()
        self._held = None
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._held = None

    def __getstate__(self) -> dict[str, Any]:
        # The packed layout is the machine's own.
        return {**self.__dict__, "_held": None}

    def forward(self, input: Tensor) -> Tensor:
        """Return the layer's output.

        It is float, or uint8 codes if the layer gives codes and the rows are many.
        """
        x = input  # torch.nn's name: a layer alone may be called by it
        if x.requires_grad and needs_gradient(x):
            return differentiable(self._values, self._portable, x)
        if self.saturating:
            return self._portable(x)
        if torch.compiler.is_compiling():
            if is_portable():
                return self._portable(x)
            return self._operator(x)
        # Written out, not called (see LinearArithmetic.is_few): for few rows every further frame of
        # Python shows, since the caches hold little of it between two layers.
        if self._held is None or x.numel() > self.few or x.ndim <= 1:
            return self.multiplied(x)
        if x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
            return self.multiplied(x)
        own = self._buffers
        codes, scale, bias, versions, packed = self._held
        if (
            own["codes"] is not codes
            or own["scale"] is not scale
            or own["bias"] is not bias
        ):
            return self.multiplied(x)
        bias_version = 0 if bias is None else bias._version
        if versions != (codes._version, scale._version, bias_version):
            return self.multiplied(x)
        factors = own["factors"]
        if factors is not None:
            x = x * factors
        source = self.source
        if source is None:
            try:
                y: Tensor = fbgemm.ROWS_DYNAMIC(x, packed, False)
            except RuntimeError:
                y = fbgemm.linear_rows(x, packed)  # knows why
        else:
            y = fbgemm.ROWS_STATIC(x, source.scale, source.zero_point, packed)
        return post(self.then, y) if self.then else y

    def _channel_axis(self) -> int:
        return 1 if self.transposed else 0

    def decoded_weight(self) -> Tensor:
        """Return the weight as float numbers, with what its input is multiplied by first."""
        weight = super().decoded_weight()
        if self.factors is None:
            return weight
        factors = self.factors.to(weight.dtype)
        if self.transposed:
            factors = factors[:, None]
        return weight * factors

    def packed_rows(self) -> Any:
        """Return the weight as the kernel for few rows takes it."""
        packed = super().packed_rows()
        if self.stacked is not None:
            return packed
        codes = self.codes
        scale = self.scale
        bias = self.bias
        # Tensors made in inference mode have no version to tell that they were written to.
        is_counted = not (codes.is_inference() or scale.is_inference())
        if is_counted and not (bias is not None and bias.is_inference()):
            versions = (codes._version, scale._version, version_of(bias))
            self._held = (codes, scale, bias, versions, packed)
        return packed

    def _values(self, x: Tensor) -> Tensor:
        y = self.forward(x)
        return as_values(y, self.gives, self.dtype)

    def _operator(self, x: Tensor) -> Tensor:
        result = self.result()
        # What the result is must be known here, so that a program is made for few rows or for many
        # where that matters.
        if self.gives is not None and self.is_few(x):
            result = (1.0, 0, self.dtype)
        y: Tensor = torch.ops.octavo.int8_linear(
            x.detach(),
            self.codes,
            self.scale,
            self.bias,
            self.factors,
            self.per_token,
            self.transposed,
            *source_arguments(self.source, self.symmetric),
            *result,
            self.then,
        )
        return y

    def _portable(self, x: Tensor) -> Tensor:
        """Compute the same in torch's own operations, on the codes as float numbers."""
        if self.factors is not None:
            x = x * self.factors
        steps, scale = self._portable_source(x)
        weight = self.codes
        if self.transposed:
            weight = weight.t()
        sums = nn.functional.linear(steps, weight.float())
        y = sums * self.scale * scale
        if self.bias is not None:
            y = y + self.bias
        y = post(self.then, y)
        return self._portable_result(y)

    def _portable_source(self, x: Tensor) -> tuple[Tensor, Tensor | float]:
        if not self.per_token or needs_gradient(x):
            return super()._portable_source(x)
        codes, scale = quantize_rows(x)
        return codes.float() - 128, scale


class Int8Conv(Int8Layer, ConvArithmetic):
    """A convolution with int8 products; bias, residual add and ReLU run inside the kernel.

    Args:
        geometry: Stride, symmetric padding, dilation, groups.
        pads: Extra zeros (as ``torch.nn.functional.pad`` takes them) where the padding is not
            symmetric.
        other: Parameters of the uint8 tensor that is added, or None.
    """

    def __init__(
        self,
        *args: Any,
        geometry: Geometry,
        pads: tuple[int, ...] = (),
        other: Activation | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.geometry = geometry
        self.pads = pads
        self.other = other

    def forward(self, input: Tensor, other: Tensor | None = None) -> Tensor:
        """Return the layer's output.

        Args:
            input: Float values, or uint8 codes of the static input: (batch, channels, *places), or
                one sample without the axis for the batch, as float layers take it.
            other: What is added: uint8 where the result is, else float. It may be overwritten.
        """
        x = input  # torch.nn's name: a layer alone may be called by it
        if x.ndim < self.codes.ndim:
            batched = None if other is None else other[None]
            return self.forward(x[None], batched).squeeze(0)
        if needs_gradient(x, other):
            tensors = (x,) if other is None else (x, other)
            return differentiable(self._values, self._portable, *tensors)
        if self.saturating:
            return self._portable(x, other)
        if not torch.compiler.is_compiling():
            return self.convolved(x, other)
        if is_portable():
            return self._portable(x, other)
        return self._operator(x, other)

    def _values(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        if other is not None and other.dtype != torch.uint8:
            # Another tensor either way, since the kernel may write into what it adds.
            if self.gives is not None and self.other is not None:
                other = self.other.quantize(other)
            else:
                other = other.clone()
        y = self.forward(x, other)
        return as_values(y, self.gives, self.dtype)

    def _operator(self, x: Tensor, other: Tensor | None) -> Tensor:
        added: tuple[float | None, int] = (None, 0)
        if self.other is not None:
            added = (self.other.scale, self.other.zero_point)
        y: Tensor = torch.ops.octavo.int8_conv(
            x.detach(),
            self.codes,
            self.scale,
            self.bias,
            None if other is None else other.detach(),
            *added,
            *self.geometry,
            self.pads,
            *source_arguments(self.source, self.symmetric),
            *self.result(),
            self.then,
        )
        return y

    def _portable(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """Compute the same in torch's own operations, on the codes as float numbers."""
        steps, scale = self._portable_source(x)
        if self.pads:
            steps = nn.functional.pad(steps, self.pads)
        stride, padding, dilation, groups = self.geometry
        axes = self.codes.ndim - 2
        convolve = _CONVOLUTIONS[axes - 1]
        weight = self.codes.float()
        sums = convolve(steps, weight, None, stride, padding, dilation, groups)
        per_channel = (1, -1, *[1] * axes)
        y = sums * self.scale.view(per_channel) * scale
        if self.bias is not None:
            y = y + self.bias.view(per_channel)
        if other is not None:
            y = y + self._portable_other(other)
        if self.then == "relu":
            y = torch.relu(y)
        return self._portable_result(y)

    def _portable_other(self, other: Tensor) -> Tensor:
        """Return what is added as float values."""
        params = self.other
        if other.dtype != torch.uint8 or params is None:
            return other
        steps = other.float() - params.zero_point
        return steps * params.scale
