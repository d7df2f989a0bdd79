"""Linear and convolution layers on integer kernels: eager, in compiled programs, and in exported ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from octavo.adapters.pytorch.kernels import fbgemm
from octavo.adapters.pytorch.kernels.activation import Activation
from octavo.adapters.pytorch.kernels.arithmetic import ConvArithmetic, Integers, LinearArithmetic
from octavo.adapters.pytorch.kernels.autocast import result_dtype
from octavo.adapters.pytorch.kernels.layouts import forget, version_of
from octavo.adapters.pytorch.kernels.operators import is_portable, source_arguments
from octavo.adapters.pytorch.kernels.posts import post
from octavo.adapters.pytorch.kernels.rounding import quantize_rows
from octavo.adapters.pytorch.kernels.saturation import in_reach, sums_fit
from octavo.adapters.pytorch.kernels.windows import Geometry
from octavo.core.numerics.tensor import QuantizedTensor

from .differentiable import as_values, clipped, differentiable, needs_gradient
from .low_bit_layer import Coded, scaled

Tensor = torch.Tensor


def _portable_range(x: Tensor, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Return scale and zero point of a dynamic range as tensors: what a compiler can follow."""
    low, high = x.float().amin().clamp(max=0), x.float().amax().clamp(min=0)
    if symmetric:
        scale = torch.maximum(-low, high) / 127
        return torch.where(scale > 0, scale, 1.0), torch.full((), 128.0, device=x.device)
    scale = (high - low) / 255
    scale = torch.where(scale > 0, scale, 1.0)
    return scale, torch.round(-low / scale).clamp(0, 255)


class Int8Layer(Coded, Integers):
    """What both kinds share: codes, scales, bias, how the input becomes codes and what comes out.

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
        self.register_buffer("scale", weight.params.scale.reshape(-1).to(torch.float32))
        self.register_buffer("bias", None if bias is None else bias.detach().to(torch.float32))
        self.dtype = dtype
        self.source = source
        self.gives = gives
        self.symmetric = symmetric
        self.then = then
        self.saturating = self._saturates()

    def _saturates(self) -> bool:
        """Return whether this machine's kernels would saturate on these codes, so that float arithmetic takes their place."""
        return self.codes.device.type == "cpu" and not in_reach(self.codes)

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
        return scaled(self.codes, self.scale, self._channel_axis()).to(self.dtype)

    def _channel_axis(self) -> int:
        return 0

    def _portable_source(self, x: Tensor) -> tuple[Tensor, Tensor | float]:
        """Return codes less their zero point, as float32, and their scale, in operations that any compiler knows."""
        if needs_gradient(x):
            return clipped(x.float(), self.source), 1.0
        if self.source is not None:
            codes = x if x.dtype == torch.uint8 else self.source.quantize(x)
            return codes.float() - self.source.zero_point, self.source.scale
        scale, zero_point = _portable_range(x, self.symmetric)
        low = 1 if self.symmetric else 0
        return (torch.round(x.float() / scale) + zero_point).clamp(low, 255) - zero_point, scale

    def _portable_result(self, y: Tensor) -> Tensor:
        if self.gives is None or needs_gradient(y):
            return y.to(result_dtype(self.dtype, y.device))
        return (
            (torch.round(y / self.gives.scale) + self.gives.zero_point)
            .clamp(0, 255)
            .to(torch.uint8)
        )

    def extra_repr(self) -> str:
        """Return its shape and mode."""
        return f"{tuple(self.codes.shape)}, int8 {'static' if self.source else 'dynamic'}{', ' + self.then if self.then else ''}"


class Int8Linear(Int8Layer, LinearArithmetic):
    """y = then(x W^T + b) with int8 products and int32 sums. It takes float values, or uint8 codes of its static input.

    Args:
        per_token: Every row of the input gets a scale of its own.
        transposed: The codes are stored as (inputs, outputs).
        factors: float32 (inputs,): the input is multiplied by it first (a rescaling that no other layer could take in).
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
        self.saturating = self._saturates()
        self.register_buffer("factors", factors)
        self.memo = None
        self.stacked = None
        self._held: tuple[Tensor, Tensor, Tensor | None, tuple[int, int, int], Any] | None = None
        self.choose()

    def _saturates(self) -> bool:
        return super()._saturates() or not sums_fit(self.codes, 1 if self.transposed else 0)

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

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output: float, or uint8 codes if it gives codes and the rows are many."""
        if x.requires_grad and needs_gradient(x):
            return differentiable(self._values, self._portable, x)
        if self.saturating:
            return self._portable(x)
        if torch.compiler.is_compiling():
            return self._portable(x) if is_portable() else self._operator(x)
        # Written out: see LinearArithmetic.is_few.
        few = (
            x.numel() <= self.few
            and x.ndim > 1
            and x.dtype == torch.float32
            and not torch.is_autocast_enabled("cpu")
        )
        if self._held is not None and few:
            # For few rows every further frame of Python shows: the caches hold little of it between two layers.
            own = self._buffers
            codes, scale, bias, versions, packed = self._held
            same = own["codes"] is codes and own["scale"] is scale and own["bias"] is bias
            if same and versions == (
                codes._version,
                scale._version,
                0 if bias is None else bias._version,
            ):
                factors, source = own["factors"], self.source
                if factors is not None:
                    x = x * factors
                if source is None:
                    try:
                        y: Tensor = fbgemm.ROWS_DYNAMIC(x, packed, False)
                    except RuntimeError:
                        y = fbgemm.linear_rows(x, packed)  # knows why
                else:
                    y = fbgemm.ROWS_STATIC(x, source.scale, source.zero_point, packed)
                return post(self.then, y) if self.then else y
        return self.multiplied(x)

    def _channel_axis(self) -> int:
        return 1 if self.transposed else 0

    def decoded_weight(self) -> Tensor:
        """Return the weight as float numbers; what its input is multiplied by first belongs to it."""
        weight = super().decoded_weight()
        if self.factors is None:
            return weight
        factors = self.factors.to(weight.dtype)
        return weight * (factors[:, None] if self.transposed else factors)

    def packed_rows(self) -> Any:
        """Return the weight as the kernel for few rows takes it."""
        packed, codes, scale, bias = super().packed_rows(), self.codes, self.scale, self.bias
        if self.stacked is None and not (
            codes.is_inference()
            or scale.is_inference()
            or (bias is not None and bias.is_inference())
        ):
            self._held = (
                codes,
                scale,
                bias,
                (codes._version, scale._version, version_of(bias)),
                packed,
            )
        return packed

    def _values(self, x: Tensor) -> Tensor:
        return as_values(self.forward(x), self.gives, self.dtype)

    def _operator(self, x: Tensor) -> Tensor:
        # What the result is must be known here, so that a program is made for few rows or for many where that matters.
        result = (
            (1.0, 0, self.dtype) if self.gives is not None and self.is_few(x) else self.result()
        )
        head = (
            x.detach(),
            self.codes,
            self.scale,
            self.bias,
            self.factors,
            self.per_token,
            self.transposed,
        )
        y: Tensor = torch.ops.octavo.int8_linear(
            *head, *source_arguments(self.source, self.symmetric), *result, self.then
        )
        return y

    def _portable(self, x: Tensor) -> Tensor:
        """Compute the same in torch's own operations, on the codes as float numbers."""
        if self.factors is not None:
            x = x * self.factors
        scale: Tensor | float
        if needs_gradient(x):
            steps, scale = clipped(x.float(), self.source), 1.0
        elif self.per_token:
            codes, scale = quantize_rows(x)
            steps = codes.float() - 128
        elif self.factors is not None and self.source is not None:
            steps, scale = (
                self.source.quantize(x).float() - self.source.zero_point,
                self.source.scale,
            )
        else:
            steps, scale = self._portable_source(x)
        weight = (self.codes.t() if self.transposed else self.codes).float()
        y = nn.functional.linear(steps, weight) * self.scale * scale
        y = y if self.bias is None else y + self.bias
        return self._portable_result(post(self.then, y))


class Int8Conv(Int8Layer, ConvArithmetic):
    """A convolution with int8 products; bias, residual add and ReLU run inside the kernel.

    Args:
        geometry: Stride, symmetric padding, dilation, groups.
        pads: Extra zeros (as ``torch.nn.functional.pad`` takes them) where the padding is not symmetric.
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

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """Return the layer's output. ``other`` is uint8 where the result is, else float, and may be overwritten."""
        if (
            x.ndim < self.codes.ndim
        ):  # a single sample without an axis for the batch, as float layers take it
            return self.forward(x[None], None if other is None else other[None]).squeeze(0)
        if needs_gradient(x, other):
            tensors = (x,) if other is None else (x, other)
            return differentiable(self._values, self._portable, *tensors)
        if self.saturating:
            return self._portable(x, other)
        if not torch.compiler.is_compiling():
            return self.convolved(x, other)
        return self._portable(x, other) if is_portable() else self._operator(x, other)

    def _values(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        if other is not None and other.dtype != torch.uint8:
            codes = self.gives is not None and self.other is not None
            other = (
                self.other.quantize(other) if codes and self.other is not None else other.clone()
            )
        return as_values(self.forward(x, other), self.gives, self.dtype)

    def _operator(self, x: Tensor, other: Tensor | None) -> Tensor:
        added = (None, 0) if self.other is None else (self.other.scale, self.other.zero_point)
        head = (
            x.detach(),
            self.codes,
            self.scale,
            self.bias,
            None if other is None else other.detach(),
            *added,
            *self.geometry,
            self.pads,
        )
        y: Tensor = torch.ops.octavo.int8_conv(
            *head, *source_arguments(self.source, self.symmetric), *self.result(), self.then
        )
        return y

    def _portable(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        steps, scale = self._portable_source(x)
        if self.pads:
            steps = nn.functional.pad(steps, self.pads)
        stride, padding, dilation, groups = self.geometry
        convolve = (nn.functional.conv1d, nn.functional.conv2d, nn.functional.conv3d)[
            self.codes.ndim - 3
        ]
        shape = (1, -1, *[1] * (self.codes.ndim - 2))
        y = (
            convolve(steps, self.codes.float(), None, stride, padding, dilation, groups)
            * self.scale.view(shape)
            * scale
        )
        y = y if self.bias is None else y + self.bias.view(shape)
        if other is not None:
            codes = other.dtype == torch.uint8 and self.other is not None
            y = y + (
                (other.float() - self.other.zero_point) * self.other.scale
                if codes and self.other is not None
                else other
            )
        return self._portable_result(torch.relu(y) if self.then == "relu" else y)
