"""Integer kernels of oneDNN on plain tensors, and whether this machine really has them.

Activations are uint8, because oneDNN's x86 kernels multiply unsigned by signed bytes; a signed int8 scheme is the same
numbers shifted by 128. Weights are int8, symmetric, with one scale for each output channel or one for all.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from .faults import fault, seven_bit_weight
from .posts import POSTS
from .rounding import quantize_u8
from .windows import Geometry, output_places, padded

Tensor = torch.Tensor


def pack_linear(codes: Tensor) -> Tensor:
    """Lay int8 codes (outputs, inputs) out for :func:`linear_u8`."""
    packed: Tensor = torch.ops.onednn.qlinear_prepack(codes.contiguous(), None)
    return packed


def linear_u8(
    x: Tensor,
    x_scale: float,
    x_zero_point: int,
    packed: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    bias: Tensor | None,
    out_scale: float = 1.0,
    out_zero_point: int = 0,
    dtype: torch.dtype = torch.float32,
    then: str = "",
) -> Tensor:
    """Multiply uint8 codes (..., inputs) by a packed weight and apply ``then``; the result is float, or uint8 with the given scale."""
    if not x.numel():
        return x.new_empty(
            (*x.shape[:-1], packed.shape[1]), dtype=dtype
        )  # the kernel drops axes of such a tensor
    written = _written(dtype, 0)
    # The kernel reads scale and bias as they lie in memory, whatever their strides.
    head = (
        x,
        x_scale,
        x_zero_point,
        packed,
        scale.contiguous(),
        zero_point,
        None if bias is None else bias.contiguous(),
    )
    y: Tensor = torch.ops.onednn.qlinear_pointwise(
        *head, out_scale, out_zero_point, written, POSTS[then][0], [], POSTS[then][1]
    )
    return y if written == dtype else y.to(dtype)


def pack_conv(
    codes: Tensor, scale: Tensor, x_scale: float, x_zero_point: int, geometry: Geometry
) -> Tensor:
    """Lay int8 codes (outputs, inputs / groups, *kernel) out for :func:`conv_u8`."""
    stride, padding, dilation, groups = geometry
    packed: Tensor = torch.ops.onednn.qconv_prepack(
        codes, scale, x_scale, x_zero_point, stride, padding, dilation, groups, None
    )
    return packed


def conv_u8(
    x: Tensor,
    x_scale: float,
    x_zero_point: int,
    packed: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    out_scale: float = 1.0,
    out_zero_point: int = 0,
    dtype: torch.dtype = torch.float32,
    relu: bool = False,
    other: Tensor | None = None,
    other_scale: float = 1.0,
    other_zero_point: int = 0,
) -> Tensor:
    """Convolve uint8 codes with a packed weight, add ``other`` and clamp at zero if asked.

    One kernel does it all, but for what it lacks: over one and three axes it adds nothing, over three it clamps nothing, and
    some processors write no 16-bit results. That is done to its result then.

    Args:
        x: uint8 (batch, channels, *places).
        x_scale: Its scale.
        x_zero_point: Its code of zero.
        packed: From :func:`pack_conv`.
        scale: Scales of the weight.
        zero_point: Zeros, as many.
        bias: float32 or None.
        geometry: Of the convolution.
        out_scale: Scale of a uint8 result.
        out_zero_point: Code of zero of a uint8 result.
        dtype: Of the result: uint8 or a floating type.
        relu: Clamp at zero.
        other: Has the result's dtype; the kernel may write into it.
        other_scale: Scale of a uint8 ``other``.
        other_zero_point: Code of zero of a uint8 ``other``.
    """
    dims = x.ndim - 2
    taps = packed.shape[-dims:]  # a weight of one axis is packed with two
    x, geometry = padded(x, x_zero_point, (packed.shape[0], packed.shape[1], *taps), geometry)
    if not x.numel():
        return x.new_empty(
            (x.shape[0], packed.shape[0], *output_places(x.shape[2:], taps, geometry)), dtype=dtype
        )
    # The kernel reads scale and bias as they lie in memory, whatever their strides.
    head: tuple[Any, ...] = (x, x_scale, x_zero_point, packed, scale.contiguous(), zero_point)
    shape: tuple[Any, ...] = (None if bias is None else bias.contiguous(), *geometry)
    added = other is not None and dims == 2
    if other is not None and not added:
        values = (
            other.float()
            if dtype != torch.uint8
            else (other.float() - other_zero_point) * other_scale
        )
        y: Tensor = torch.ops.onednn.qconv_pointwise(
            *head, *shape, 1.0, 0, torch.float32, "none", [], ""
        ).add_(values)
        y = y.relu_() if relu else y
        return (
            y.to(dtype)
            if dtype != torch.uint8
            else quantize_u8(y, out_scale, out_zero_point, 0, 255)
        )
    written = _written(dtype, dims)
    then = "relu" if relu and dims < 3 else "none"
    result: tuple[Any, ...] = (out_scale, out_zero_point, written)
    if other is None:
        y = torch.ops.onednn.qconv_pointwise(*head, *shape, *result, then, [], "")
    else:
        tail: tuple[Any, ...] = (other_scale, other_zero_point, "sum", 1.0, then, [], "")
        sums = other.to(written).contiguous(memory_format=torch.channels_last)
        y = torch.ops.onednn.qconv2d_pointwise.binary(*head, sums, *shape, *result, *tail)
    if relu and dims == 3:
        y = y.clamp_(min=out_zero_point if dtype == torch.uint8 else 0)
    return y if written == dtype else y.to(dtype)


def _written(dtype: torch.dtype, dims: int) -> torch.dtype:
    """Return the dtype that a kernel writes for a result: of convolutions over so many axes, or of linear layers for 0."""
    return torch.float32 if _missing_dtype(dtype, dims) else dtype


@cache
def _missing_dtype(dtype: torch.dtype, dims: int) -> str:
    """Return why a kernel writes no such results here; empty where it was run and was right."""
    if dtype in (torch.float32, torch.uint8):
        return ""
    if dtype not in (torch.bfloat16, torch.float16):
        return f"the integer kernels write no {dtype}"

    def run(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x = torch.randint(0, 256, (2, 16, *[3] * dims), dtype=torch.uint8, generator=generator)
        codes = torch.randint(-63, 64, (16, 16, *[1] * dims), dtype=torch.int8, generator=generator)
        scale, none = torch.full((1,), 1e-3), torch.zeros(1, dtype=torch.int32)
        expected = (
            torch.einsum("oi,bi...->bo...", codes.flatten(1).double(), x.double() - 77) * 1e-3
        )
        if not dims:
            y = torch.ops.onednn.qlinear_pointwise(
                x, 1.0, 77, pack_linear(codes), scale, none, None, 1.0, 0, dtype, "none", [], ""
            )
            return y, expected
        one, zero = [1] * dims, [0] * dims
        packed = pack_conv(codes, scale, 1.0, 77, (one, zero, one, 1))
        head = (x, 1.0, 77, packed, scale, none, None, one, zero, one, 1)
        return torch.ops.onednn.qconv_pointwise(*head, 1.0, 0, dtype, "none", [], ""), expected

    return fault(f"results of {dtype}", 0.02, run)


def pack_int4(codes: Tensor, scale: Tensor, zero: Tensor) -> tuple[Tensor, Tensor]:
    """Lay codes 0 to 15 (outputs, inputs), int32, out for :func:`linear_int4`, with scales and zeros (outputs, groups)."""
    packed: Tensor = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    return packed, torch.stack([scale, zero], -1).transpose(0, 1).contiguous().to(torch.bfloat16)


def linear_int4(x: Tensor, packed: Tensor, group: int, scales: Tensor) -> Tensor:
    """Return x W^T in bfloat16 for float ``x`` (rows, inputs) and 4-bit codes, decoded inside the kernel."""
    y: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
        x.to(torch.bfloat16).contiguous(), packed, group, scales
    )
    return y


@cache
def missing_linear() -> str:
    """Return why the int8 linear kernel cannot be used here; empty when it was run and gave the right numbers."""

    def run(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x = torch.randint(0, 256, (5, 64), dtype=torch.uint8, generator=generator)
        w, scale = seven_bit_weight(generator, 32, 64)
        y = linear_u8(x, 0.02, 77, pack_linear(w), scale, torch.zeros(32, dtype=torch.int32), None)
        return y, (x.double() - 77) * 0.02 @ (w.double() * scale[:, None]).T

    return fault("torch.ops.onednn.qlinear_pointwise", 1e-3, run)


@cache
def missing_int4(device: torch.device) -> str:
    """Return why the 4-bit weight kernel cannot be used on the CPU, the one ``device`` there is here; empty when it was right."""

    def run(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x = torch.randn(3, 64, generator=generator)
        codes = torch.randint(0, 16, (32, 64), dtype=torch.int32, generator=generator)
        scale = torch.rand(32, 2, generator=generator) + 0.5
        packed, scales = pack_int4(codes, scale, -scale)
        weight = (codes.double() - 8).view(32, 2, 32) * scale[..., None] - scale[..., None]
        return linear_int4(x, packed, 32, scales), x.double() @ weight.view(32, 64).T

    return fault("torch.ops.aten._weight_int4pack_mm_for_cpu", 0.02, run)


@cache
def missing_conv(dims: int = 2) -> str:
    """Return why the int8 convolution kernel of that many spatial axes cannot be used; empty when it was run and was right."""

    def run(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x = torch.randint(0, 256, (2, 8, *(6,) * dims), dtype=torch.uint8, generator=generator)
        w, scale = seven_bit_weight(generator, 16, 8, *(3,) * dims)
        one = [1] * dims
        geometry = (one, one, one, 1)
        y = conv_u8(
            x,
            0.02,
            77,
            pack_conv(w, scale, 0.02, 77, geometry),
            scale,
            torch.zeros(16, dtype=torch.int32),
            None,
            geometry,
        )
        convolve = (
            torch.nn.functional.conv1d,
            torch.nn.functional.conv2d,
            torch.nn.functional.conv3d,
        )[dims - 1]
        return y, convolve(
            (x.double() - 77) * 0.02,
            w.double() * scale.double().reshape(-1, *[1] * (dims + 1)),
            None,
            1,
            1,
        )

    return fault("torch.ops.onednn.qconv_pointwise", 1e-3, run)
