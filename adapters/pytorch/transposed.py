"""Transposed convolutions on integer kernels.

oneDNN's kernels for plain tensors have none, so that of torch's quantized tensors runs (FBGEMM's): one scale for the whole
weight, and a result in codes, whose range calibration must have seen.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import nn

from . import kernels
from .activation import Activation
from .int8 import Int8Layer

Tensor = torch.Tensor
Geometry = tuple[Sequence[int], Sequence[int], Sequence[int], Sequence[int], int]
"""Stride, padding, output padding, dilation and groups."""

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_FLOAT = (nn.functional.conv_transpose1d, nn.functional.conv_transpose2d, nn.functional.conv_transpose3d)


class Int8ConvTranspose(Int8Layer):
    """A transposed convolution with int8 products. It takes float values, or uint8 codes of its static input.

    Args:
        geometry: See :data:`Geometry`.
        result: Parameters of what the kernel writes.
    """

    def __init__(self, *args: Any, geometry: Geometry, result: Activation, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.geometry = geometry
        self.result = result

    def forward(self, x: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """Return the layer's output: float, or uint8 codes if it gives codes."""
        assert self.source is not None
        geometry = self._sized(x, output_size)
        if torch.compiler.is_compiling():
            return self._portable(x, geometry)
        codes = x if x.dtype == torch.uint8 else self.source.quantize(x)
        packed = self.laid_out(repr(geometry), lambda: pack(self.codes, float(self.scale), self.bias, geometry))
        out = self.gives or self.result
        y = conv_transpose_u8(codes, self.source.scale, self.source.zero_point, packed, out.scale, out.zero_point)
        return y if self.gives is not None else ((y.float() - out.zero_point) * out.scale).to(self.dtype)

    def _sized(self, x: Tensor, output_size: Sequence[int] | None) -> Geometry:
        """Return the geometry whose output has the size that was asked for (torch's ``output_size``)."""
        if output_size is None:
            return self.geometry
        stride, padding, _, dilation, groups = self.geometry
        n = len(stride)
        reach = [d * (k - 1) + 1 for d, k in zip(dilation, self.codes.shape[2:], strict=True)]
        least = [(x.shape[i - n] - 1) * stride[i] - 2 * padding[i] + reach[i] for i in range(n)]
        extra = [int(size) - low for size, low in zip(output_size[-n:], least, strict=True)]
        if any(not 0 <= e < s for e, s in zip(extra, stride, strict=True)):
            raise ValueError(
                f"output_size {tuple(output_size)}: each axis can be {least} and up to stride - 1 = {[s - 1 for s in stride]} more"
            )
        return stride, padding, extra, dilation, groups

    def _portable(self, x: Tensor, geometry: Geometry) -> Tensor:
        steps, scale = self._portable_source(x)
        stride, padding, extra, dilation, groups = geometry
        y = _FLOAT[len(stride) - 1](steps, self.codes.float(), None, stride, padding, extra, groups, dilation) * self.scale * scale
        return self._portable_result(y if self.bias is None else y + self.bias.view(1, -1, *[1] * len(stride)))


def pack(codes: Tensor, scale: float, bias: Tensor | None, geometry: Geometry) -> Any:
    """Lay int8 codes (inputs, outputs / groups, *kernel) out for :func:`conv_transpose_u8`, with scale and bias."""
    stride, padding, extra, dilation, groups = (list(g) if isinstance(g, Sequence) else g for g in geometry)
    prepack: Any = getattr(torch.ops.quantized, f"conv_transpose{codes.ndim - 2}d_prepack")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces the end of its quantized tensors
        weight = torch._make_per_tensor_quantized_tensor(codes, scale, 0)
        engine = torch.backends.quantized.engine
        torch.backends.quantized.engine = "fbgemm"  # those of oneDNN were seen to answer wrongly
        try:
            return prepack(weight, bias, stride, padding, extra, dilation, groups)
        finally:
            torch.backends.quantized.engine = engine


def conv_transpose_u8(codes: Tensor, scale: float, zero_point: int, packed: Any, out_scale: float, out_zero_point: int) -> Tensor:
    """Return uint8 codes with the given output scale of a transposed convolution of uint8 codes (batch, channels, *places)."""
    run: Any = getattr(torch.ops.quantized, f"conv_transpose{codes.ndim - 2}d")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x = torch._make_per_tensor_quantized_tensor(codes, scale, zero_point)
        y: Tensor = run(x, packed, out_scale, out_zero_point).int_repr()
    return y


@cache
def has_conv_transpose(dims: int, grouped: bool) -> str:
    """Return why the int8 kernel of that many spatial axes cannot be used; empty when it was run and was right."""

    def run(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        groups = 2 if grouped else 1
        x = torch.randint(0, 256, (2, 8, *(5,) * dims), dtype=torch.uint8, generator=generator)
        codes = torch.randint(-127, 128, (8, 16 // groups, *(3,) * dims), dtype=torch.int8, generator=generator)
        two, one = [2] * dims, [1] * dims
        expected = _FLOAT[dims - 1]((x.double() - 77) * 0.02, codes.double() * 1e-3, None, two, one, one, groups, one)
        scale = float(expected.abs().max()) / 127
        y = conv_transpose_u8(x, 0.02, 77, pack(codes, 1e-3, None, (two, one, one, one, groups)), scale, 128)
        return (y.double() - 128) * scale, expected

    return kernels.fault(f"torch.ops.quantized.conv_transpose{dims}d", 6e-3, run)  # half a step of 1/127
