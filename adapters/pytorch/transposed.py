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

from octavo.core.graph import Op

from . import kernels
from .activation import Activation
from .int8 import Int8Layer
from .layouts import content, layout

Tensor = torch.Tensor
Geometry = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...], int]
"""Stride, padding, output padding, dilation and groups."""

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_FLOAT = (nn.functional.conv_transpose1d, nn.functional.conv_transpose2d, nn.functional.conv_transpose3d)


def transposed_geometry(op: Op) -> Geometry:
    """Return the geometry that a transposed convolution states."""
    given: Any = op.attributes
    return given["strides"], given["pads"][: len(given["pads"]) // 2], given["output_padding"], given["dilations"], given["groups"]


class Int8ConvTranspose(Int8Layer):
    """A transposed convolution with int8 products. It takes float values, or uint8 codes of its static input.

    Args:
        geometry: See :data:`Geometry`.
        result: Parameters of what the kernel writes.
    """

    def __init__(self, *args: Any, geometry: Geometry, result: Activation, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.geometry = geometry
        self.written = result

    def forward(self, x: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """Return the layer's output: float, or uint8 codes if it gives codes."""
        assert self.source is not None
        geometry = self._sized(x, output_size)
        if torch.compiler.is_compiling():
            return self._portable(x, geometry)
        codes = x if x.dtype == torch.uint8 else self.source.quantize(x)
        packed, spare = layout(self.codes, (geometry, content(self.scale), content(self.bias)), lambda: self._packed(geometry))
        out = self.gives or self.written
        y = conv_transpose_u8(codes, self.source.scale, self.source.zero_point, packed, out.scale, out.zero_point)
        y = y[:, :-1] if spare else y
        return y if self.gives is not None else ((y.float() - out.zero_point) * out.scale).to(self.dtype)

    def _packed(self, geometry: Geometry) -> tuple[Any, bool]:
        spare = needs_spare(tuple(self.codes.shape), geometry)
        codes, bias = with_spare(self.codes, self.bias) if spare else (self.codes, self.bias)
        return pack(codes, float(self.scale), bias, geometry), spare

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
        return stride, padding, tuple(extra), dilation, groups

    def _portable(self, x: Tensor, geometry: Geometry) -> Tensor:
        steps, scale = self._portable_source(x)
        stride, padding, extra, dilation, groups = geometry
        y = _FLOAT[len(stride) - 1](steps, self.codes.float(), None, stride, padding, extra, groups, dilation) * self.scale * scale
        return self._portable_result(y if self.bias is None else y + self.bias.view(1, -1, *[1] * len(stride)))


def pack(codes: Tensor, scale: float, bias: Tensor | None, geometry: Geometry) -> Any:
    """Lay int8 codes (inputs, outputs / groups, *kernel) out for :func:`conv_transpose_u8`, with scale and bias."""
    stride, padding, extra, dilation, groups = (list(g) if isinstance(g, tuple) else g for g in geometry)
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


def with_spare(codes: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias with one more output channel, of zeros."""
    more = torch.cat([codes, codes.new_zeros(codes.shape[0], 1, *codes.shape[2:])], 1)
    return more, None if bias is None else torch.cat([bias, bias.new_zeros(1)])


def has_conv_transpose(shape: tuple[int, ...], geometry: Geometry) -> str:
    """Return why the int8 kernel cannot be used for a weight of that shape; empty when it was run and was right."""
    small = _smaller(shape, geometry)
    return _fault(*small, False) if not _fault(*small, False) or geometry[4] != 1 else _fault(*small, True)


def needs_spare(shape: tuple[int, ...], geometry: Geometry) -> bool:
    """True if the kernel is right only with a channel more than is needed.

    FBGEMM has a path of its own for 2 x 2 kernels whose channels are multiples of 8, and in torch 2.13 that path is wrong.
    """
    small = _smaller(shape, geometry)
    return geometry[4] == 1 and bool(_fault(*small, False))


def _smaller(shape: tuple[int, ...], geometry: Geometry) -> tuple[tuple[int, ...], Geometry]:
    """Return a weight's shape and geometry with fewer channels and groups, divisible by the same powers of two up to 32."""
    groups = _fewer(geometry[4])
    return (_fewer(shape[0] // geometry[4]) * groups, _fewer(shape[1]), *shape[2:]), (*geometry[:4], groups)


def _fewer(count: int) -> int:
    return count if count <= 32 else 32 + count % 32


@cache
def _fault(shape: tuple[int, ...], geometry: Geometry, spare: bool) -> str:
    def run(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        dims = len(shape) - 2
        x = torch.randint(0, 256, (2, shape[0], *(5,) * dims), dtype=torch.uint8, generator=generator)
        codes = torch.randint(-127, 128, shape, dtype=torch.int8, generator=generator)
        stride, padding, extra, dilation, groups = geometry
        expected = _FLOAT[dims - 1]((x.double() - 77) * 0.02, codes.double() * 1e-3, None, stride, padding, extra, groups, dilation)
        scale = float(expected.abs().max()) / 127
        packed = pack(with_spare(codes, None)[0] if spare else codes, 1e-3, None, geometry)
        y = conv_transpose_u8(x, 0.02, 77, packed, scale, 128)
        return ((y[:, :-1] if spare else y).double() - 128) * scale, expected

    return kernels.fault(f"torch.ops.quantized.conv_transpose{len(shape) - 2}d", 6e-3, run)  # half a step of 1/127
