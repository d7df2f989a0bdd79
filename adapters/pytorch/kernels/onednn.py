"""Integer kernels of oneDNN on plain tensors, and whether this machine really has them.

Activations are uint8, because oneDNN's x86 kernels multiply unsigned by signed bytes; a signed int8
scheme is the same numbers shifted by 128. Weights are int8, symmetric, with one scale for each
output channel or one for all. The product by weights of 4 bits is ATen's own for the CPU.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch.nn import functional as F

from .faults import (
    Pair,
    drawn_inputs,
    exact_product,
    fault,
    int4_fault,
    seven_bit_weight,
)
from .posts import POSTS
from .rounding import quantize_u8
from .windows import Geometry, output_places, padded, unit_geometry

Tensor = torch.Tensor
_ONEDNN = torch.ops.onednn
_ATEN = torch.ops.aten


def pack_linear(codes: Tensor) -> Tensor:
    """Lay int8 codes (outputs, inputs) out for :func:`linear_u8`."""
    packed: Tensor = _ONEDNN.qlinear_prepack(codes.contiguous(), None)
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
    """Multiply uint8 codes (..., inputs) by a packed weight and apply ``then``.

    The result is float, or uint8 with the given scale.
    """
    if not x.numel():
        # The kernel drops axes of such a tensor.
        return x.new_empty((*x.shape[:-1], packed.shape[1]), dtype=dtype)
    written = _written(dtype, 0)
    kernel_post, variant = POSTS[then]
    # The kernel reads scale and bias as they lie in memory, whatever their strides.
    scale = scale.contiguous()
    bias = None if bias is None else bias.contiguous()
    head = (x, x_scale, x_zero_point, packed, scale, zero_point, bias)
    result = (out_scale, out_zero_point, written)
    y: Tensor = _ONEDNN.qlinear_pointwise(*head, *result, kernel_post, [], variant)
    return y if written == dtype else y.to(dtype)


def pack_conv(
    codes: Tensor, scale: Tensor, x_scale: float, x_zero_point: int, geometry: Geometry
) -> Tensor:
    """Lay int8 codes (outputs, inputs / groups, *kernel) out for :func:`conv_u8`."""
    packed: Tensor = _ONEDNN.qconv_prepack(
        codes, scale, x_scale, x_zero_point, *geometry, None
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

    One kernel does it all, but for what it lacks: over one and three axes it adds nothing, over
    three it clamps nothing, and some processors write no 16-bit results. That is done to its result
    then.

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
    # A weight of one axis is packed with two.
    taps = packed.shape[-dims:]
    weight_shape = (packed.shape[0], packed.shape[1], *taps)
    x, geometry = padded(x, x_zero_point, weight_shape, geometry)
    if not x.numel():
        places = output_places(x.shape[2:], taps, geometry)
        return x.new_empty((x.shape[0], packed.shape[0], *places), dtype=dtype)
    # The kernel reads scale and bias as they lie in memory, whatever their strides.
    scale = scale.contiguous()
    bias = None if bias is None else bias.contiguous()
    head = (x, x_scale, x_zero_point, packed, scale, zero_point)
    shape = (bias, *geometry)
    if other is not None and dims != 2:
        added = other.float()
        if dtype == torch.uint8:
            added = (added - other_zero_point) * other_scale
        total = _sum_in_float(head, shape, added, relu)
        if dtype == torch.uint8:
            return quantize_u8(total, out_scale, out_zero_point, 0, 255)
        return total.to(dtype)

    written = _written(dtype, dims)
    then = "relu" if relu and dims < 3 else "none"
    result = (out_scale, out_zero_point, written)
    y: Tensor
    if other is None:
        y = _ONEDNN.qconv_pointwise(*head, *shape, *result, then, [], "")
    else:
        sums = other.to(written).contiguous(memory_format=torch.channels_last)
        addend = (other_scale, other_zero_point, "sum", 1.0)
        y = _ONEDNN.qconv2d_pointwise.binary(
            *head, sums, *shape, *result, *addend, then, [], ""
        )
    if relu and dims == 3:
        zero = out_zero_point if dtype == torch.uint8 else 0
        y = y.clamp_(min=zero)
    return y if written == dtype else y.to(dtype)


def _sum_in_float(
    head: tuple[Any, ...], shape: tuple[Any, ...], added: Tensor, relu: bool
) -> Tensor:
    """Return a convolution and what is added to it, both in float32."""
    as_float = (1.0, 0, torch.float32)
    y: Tensor = _ONEDNN.qconv_pointwise(*head, *shape, *as_float, "none", [], "")
    y = y.add_(added)
    return y.relu_() if relu else y


def _written(dtype: torch.dtype, dims: int) -> torch.dtype:
    """Return the dtype that a kernel writes for a result.

    Args:
        dtype: Of the result.
        dims: Spatial axes of a convolution; 0 for linear layers.
    """
    return torch.float32 if _missing_dtype(dtype, dims) else dtype


@cache
def _missing_dtype(dtype: torch.dtype, dims: int) -> str:
    """Return why a kernel writes no such results here; empty where it was run and was right."""
    if dtype in (torch.float32, torch.uint8):
        return ""
    if dtype not in (torch.bfloat16, torch.float16):
        return f"the integer kernels write no {dtype}"

    def run(generator: torch.Generator) -> Pair:
        x = drawn_inputs(generator, 2, 16, *[3] * dims)
        codes, _ = seven_bit_weight(generator, 16, 16, *[1] * dims)
        matrix = codes.flatten(1).double()
        exact = torch.einsum("oi,bi...->bo...", matrix, x.double() - 77)
        scale = torch.full((1,), 1e-3)
        none = torch.zeros(1, dtype=torch.int32)
        plain = unit_geometry(dims)
        result: tuple[Any, ...] = (1.0, 0, dtype, "none", [], "")
        if dims:
            packed = pack_conv(codes, scale, 1.0, 77, plain)
            head = (x, 1.0, 77, packed, scale, none, None)
            y = _ONEDNN.qconv_pointwise(*head, *plain, *result)
        else:
            head = (x, 1.0, 77, pack_linear(codes), scale, none, None)
            y = _ONEDNN.qlinear_pointwise(*head, *result)
        return y, exact * 1e-3

    return fault(f"results of {dtype}", 0.02, run)


def pack_int4(codes: Tensor, scale: Tensor, zero: Tensor) -> tuple[Tensor, Tensor]:
    """Lay codes 0 to 15 (outputs, inputs), int32, out for :func:`linear_int4`.

    Args:
        codes: The codes.
        scale: float32 (outputs, groups).
        zero: What stands for code 8, (outputs, groups).
    """
    packed: Tensor = _ATEN._convert_weight_to_int4pack_for_cpu(codes, 1)
    return packed, scales_and_zeros(scale, zero)


def scales_and_zeros(scale: Tensor, zero: Tensor) -> Tensor:
    """Return scales and zeros as torch's 4-bit products of every device take them.

    Args:
        scale: float32 (outputs, groups).
        zero: Likewise.

    Returns:
        bfloat16 (groups, outputs, 2).
    """
    pairs = torch.stack([scale, zero], -1)
    groups_first = pairs.transpose(0, 1).contiguous()
    return groups_first.to(torch.bfloat16)


def linear_int4(x: Tensor, packed: Tensor, group: int, scales: Tensor) -> Tensor:
    """Return x W^T in bfloat16 for float ``x`` (rows, inputs) and 4-bit codes.

    The codes are decoded inside the kernel.
    """
    half = x.to(torch.bfloat16).contiguous()
    y: Tensor = _ATEN._weight_int4pack_mm_for_cpu(half, packed, group, scales)
    return y


@cache
def missing_linear() -> str:
    """Return why the int8 linear kernel cannot be used here.

    Empty when it was run and was right.
    """

    def run(generator: torch.Generator) -> Pair:
        x = drawn_inputs(generator, 5, 64)
        w, scale = seven_bit_weight(generator, 32, 64)
        none = torch.zeros(32, dtype=torch.int32)
        y = linear_u8(x, 0.02, 77, pack_linear(w), scale, none, None)
        exact_x = (x.double() - 77) * 0.02
        return y, exact_product(exact_x, w, scale)

    return fault("torch.ops.onednn.qlinear_pointwise", 1e-3, run)


@cache
def missing_int4(device: torch.device) -> str:
    """Return why the 4-bit weight kernel cannot be used on the CPU; empty when it was right.

    Args:
        device: The CPU, the one device there is here.
    """
    kernel = "torch.ops.aten._weight_int4pack_mm_for_cpu"
    return int4_fault(kernel, pack_int4, linear_int4, device)


@cache
def missing_conv(dims: int = 2) -> str:
    """Return why the int8 convolution kernel cannot be used; empty when it was run and was right.

    Args:
        dims: Its spatial axes.
    """

    def run(generator: torch.Generator) -> Pair:
        x = drawn_inputs(generator, 2, 8, *[6] * dims)
        w, scale = seven_bit_weight(generator, 16, 8, *(3,) * dims)
        none = torch.zeros(16, dtype=torch.int32)
        geometry = unit_geometry(dims, padding=1)
        packed = pack_conv(w, scale, 0.02, 77, geometry)
        y = conv_u8(x, 0.02, 77, packed, scale, none, None, geometry)
        convolve: Any = (F.conv1d, F.conv2d, F.conv3d)[dims - 1]
        by_output = scale.double().reshape(-1, *[1] * (dims + 1))
        weight = w.double() * by_output
        exact_x = (x.double() - 77) * 0.02
        exact: Tensor = convolve(exact_x, weight, None, 1, 1)
        return y, exact

    return fault("torch.ops.onednn.qconv_pointwise", 1e-3, run)
