"""Transposed convolutions on the integer kernels of ordinary ones (:mod:`~.subpixel`).

Torch's own integer kernels for them take one scale for the whole weight, are slower than the float
ones, and answer wrongly for dynamic inputs and for some 2 x 2 kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from octavo.adapters.pytorch.kernels.operators import is_portable, source_arguments
from octavo.adapters.pytorch.kernels.posts import post

from .differentiable import as_values, differentiable, needs_gradient
from .int8_layer import Int8Layer
from .subpixel import Geometry as Upsampling
from .subpixel import output_places
from .transposed_arithmetic import TransposedArithmetic

Tensor = torch.Tensor
_FLOAT: Any = (
    nn.functional.conv_transpose1d,
    nn.functional.conv_transpose2d,
    nn.functional.conv_transpose3d,
)


class Int8ConvTranspose(Int8Layer, TransposedArithmetic):
    """A transposed convolution with int8 products.

    It takes float values, or uint8 codes of its static input.

    Args:
        geometry: See :data:`~.subpixel.Geometry`.
    """

    def __init__(self, *args: Any, geometry: Upsampling, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.geometry = geometry

    def _channel_axis(self) -> int:
        return 1

    def forward(
        self, input: Tensor, output_size: Sequence[int] | None = None
    ) -> Tensor:
        """Return the layer's output: float, or uint8 codes if it gives codes.

        Args:
            input: (batch, channels, *places), or one sample without the axis for the batch, as
                float layers take it.
            output_size: Of the result, as torch's layers take it.

        Raises:
            ValueError: No output padding gives a result of that size.
        """
        x = input  # torch.nn's name: a layer alone may be called by it
        if x.ndim < self.codes.ndim:
            return self.forward(x[None], output_size).squeeze(0)
        geometry = self._sized(x, output_size)
        if needs_gradient(x):
            return self._with_gradient(x, output_size, geometry)
        if self.saturating:
            return self._portable(x, geometry)
        if not torch.compiler.is_compiling():
            return self.upsampled(x, geometry)
        if is_portable():
            return self._portable(x, geometry)
        return self._operator(x, geometry)

    def _with_gradient(
        self, x: Tensor, output_size: Sequence[int] | None, geometry: Upsampling
    ) -> Tensor:
        def on_kernel(x: Tensor) -> Tensor:
            y = self.forward(x, output_size)
            return as_values(y, self.gives, self.dtype)

        def in_float(x: Tensor) -> Tensor:
            return self._portable(x, geometry)

        return differentiable(on_kernel, in_float, x)

    def _sized(self, x: Tensor, output_size: Sequence[int] | None) -> Upsampling:
        """Return the geometry whose output has the size that was asked for."""
        if output_size is None:
            return self.geometry
        stride, padding, _, dilation, groups = self.geometry
        n = len(stride)
        kernel = tuple(self.codes.shape[2:])
        none = (0,) * n
        smallest = (stride, padding, none, dilation, groups)
        places = tuple(x.shape[-n:])
        least = output_places(places, kernel, smallest)
        extra = []
        for size, low in zip(output_size[-n:], least, strict=True):
            extra.append(int(size) - low)
        fits = [0 <= e < s for e, s in zip(extra, stride, strict=True)]
        if not all(fits):
            more = [s - 1 for s in stride]
            raise ValueError(
                f"output_size {tuple(output_size)}: each axis can be {least} and up to "
                f"stride - 1 = {more} more"
            )
        return stride, padding, tuple(extra), dilation, groups

    def _operator(self, x: Tensor, geometry: Upsampling) -> Tensor:
        y: Tensor = torch.ops.octavo.int8_conv_transpose(
            x.detach(),
            self.codes,
            self.scale,
            self.bias,
            *geometry,
            *source_arguments(self.source, self.symmetric),
            *self.result(),
            self.then,
        )
        return y

    def _portable(self, x: Tensor, geometry: Upsampling) -> Tensor:
        """Compute the same in torch's own operations, on the codes as float numbers."""
        steps, scale = self._portable_source(x)
        stride, padding, extra, dilation, groups = geometry
        convolve = _FLOAT[len(stride) - 1]
        weight = self.codes.float()
        y = convolve(steps, weight, None, stride, padding, extra, groups, dilation)
        per_channel = (1, -1, *[1] * len(stride))
        own = self.scale
        if own.numel() > 1:
            # Groups share their scales.
            own = own.repeat(groups)
        y = y * own.view(per_channel) * scale
        if self.bias is not None:
            y = y + self.bias.view(per_channel)
        return self._portable_result(post(self.then, y))
