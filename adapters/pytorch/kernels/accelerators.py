"""Products in low precision on devices other than the CPU, and whether a device really has them.

int8 goes through ``torch._int_mm``, fp8 through ``torch._scaled_mm``, 4 bits through
``torch._weight_int4pack_mm``. The functions have the names and arguments of those of
:mod:`~.onednn`, so that a layer is one class and only asks :func:`on` its device. int8 and fp8
products exist on the CPU too, where the tests run them; of the 4-bit one the CPU has a version of
its own.
"""

from __future__ import annotations

import sys
from functools import cache, partial
from types import ModuleType

import torch
from torch.nn.functional import pad

from . import onednn
from .faults import Pair, drawn_inputs, exact_product, fault, int4_fault
from .posts import post

Tensor = torch.Tensor
_ATEN = torch.ops.aten
_TABLE: dict[str, ModuleType] = {"cpu": onednn}
_ROWS = 17
"""cuBLAS multiplies int8 only for more than 16 rows, and widths that are multiples of 8."""
_FP8_LARGEST = 448.0
"""The largest finite value of fp8_e4m3fn."""
_TINY = 1e-30
"""Stands for the largest magnitude where all values are zero: their scale must not be zero."""


def on(device: torch.device) -> ModuleType:
    """Return the module of products for a device.

    It has ``pack_linear``, ``linear_u8``, ``pack_int4``, ``linear_int4`` and ``missing_int4``.
    """
    return _TABLE.get(device.type, sys.modules[__name__])


def _padded(x: Tensor, rows: int, columns: int) -> Tensor:
    """Return a matrix with zeros below and on the right.

    Args:
        x: The matrix.
        rows: It gets at least so many rows.
        columns: Its width becomes a multiple of this.
    """
    right = -x.shape[1] % columns
    below = max(0, rows - x.shape[0])
    if not (right or below):
        return x
    return pad(x, (0, right, 0, below))


def pack_linear(codes: Tensor) -> tuple[Tensor, Tensor]:
    """Lay int8 codes (outputs, inputs) out for :func:`linear_u8`.

    Returns:
        The weight (inputs, outputs) in C order, widths multiples of 8; and the sums of the rows.
    """
    inputs_first = _padded(codes, 0, 8).t().contiguous()
    # In another order than C's cuBLAS gives wrong numbers without a word.
    weight = _padded(inputs_first, 0, 8).contiguous()
    return weight, codes.sum(1, dtype=torch.int32)


def linear_u8(
    x: Tensor,
    x_scale: float,
    x_zero_point: int,
    packed: tuple[Tensor, Tensor],
    scale: Tensor,
    zero_point: Tensor,
    bias: Tensor | None,
    out_scale: float = 1.0,
    out_zero_point: int = 0,
    dtype: torch.dtype = torch.float32,
    then: str = "",
) -> Tensor:
    """Multiply uint8 codes (..., inputs) by a packed weight and apply ``then``.

    The result is float, or uint8 with the given scale. The product takes signed codes, x - 128;
    what that leaves out is (128 - zero point) times the sums of the weight's rows.
    """
    weight, sums = packed
    outputs = sums.shape[0]
    flat = x.reshape(-1, x.shape[-1]).contiguous()
    rows = flat.shape[0]
    # x - 128 in int8 is x with its highest bit turned.
    signed = flat.bitwise_xor(128).view(torch.int8)
    product = torch._int_mm(_padded(signed, _ROWS, 8), weight)
    left_out = (128 - x_zero_point) * sums
    total = product[:rows, :outputs] + left_out
    y = total.float() * (scale * x_scale)
    if bias is not None:
        y = y + bias
    y = post(then, y)
    if dtype == torch.uint8:
        codes = torch.round(y / out_scale) + out_zero_point
        y = codes.clamp_(0, 255)
    return y.to(dtype).view(*x.shape[:-1], outputs)


def pack_fp8(codes: Tensor) -> Tensor:
    """Lay bit patterns of fp8_e4m3fn (outputs, inputs) out for :func:`linear_fp8`.

    Both widths become multiples of 16.
    """
    outputs = codes.shape[0]
    rows = outputs + -outputs % 16
    padded = _padded(codes, rows, 16)
    return padded.contiguous().view(torch.float8_e4m3fn)


def quantize_fp8(x: Tensor, per_row: bool) -> tuple[Tensor, Tensor]:
    """Return a float matrix as fp8_e4m3fn, and its scales.

    Returns:
        The matrix, its width a multiple of 16; the scales, float32: (rows, 1), or one.
    """
    x = x.float()
    magnitudes = x.abs()
    if per_row:
        largest = magnitudes.amax(1, keepdim=True)
    else:
        largest = magnitudes.amax()
    scale = largest.clamp(min=_TINY) / _FP8_LARGEST
    values = (x / scale).clamp(-_FP8_LARGEST, _FP8_LARGEST)
    return _padded(values, 0, 16).to(torch.float8_e4m3fn), scale


def linear_fp8(x: Tensor, x_scale: Tensor, packed: Tensor, scale: Tensor) -> Tensor:
    """Multiply fp8 rows by a packed weight: bfloat16, with the padded columns.

    Args:
        x: From :func:`quantize_fp8`.
        x_scale: Its scales.
        packed: From :func:`pack_fp8`.
        scale: float32 (padded outputs,) beside scales of rows; one beside one.
    """
    column_scale = scale if scale.ndim == 0 else scale[None, :]
    return torch._scaled_mm(
        x, packed.t(), x_scale, column_scale, out_dtype=torch.bfloat16
    )


def pack_int4(codes: Tensor, scale: Tensor, zero: Tensor) -> tuple[Tensor, Tensor]:
    """Lay codes 0 to 15 (outputs, inputs), int32, out for :func:`linear_int4`.

    Args:
        codes: The codes.
        scale: float32 (outputs, groups).
        zero: What stands for code 8, (outputs, groups).
    """
    halves = codes[:, ::2] << 4 | codes[:, 1::2]
    # The kernel lays 8, 4 or 2 tiles of 16 inputs side by side.
    inputs = codes.shape[1]
    tiles = next(count for count in (8, 4, 2) if inputs % (16 * count) == 0)
    contiguous = halves.to(torch.uint8).contiguous()
    packed = _ATEN._convert_weight_to_int4pack(contiguous, tiles)
    return packed, onednn.scales_and_zeros(scale, zero)


def linear_int4(x: Tensor, packed: Tensor, group: int, scales: Tensor) -> Tensor:
    """Return x W^T in bfloat16 for float ``x`` (rows, inputs) and 4-bit codes.

    The codes are decoded inside the kernel.
    """
    half = x.to(torch.bfloat16).contiguous()
    y: Tensor = _ATEN._weight_int4pack_mm(half, packed, group, scales)
    return y


@cache
def missing_linear(device: str) -> str:
    """Return why a device multiplies no int8 matrices; empty when it did and was right."""

    def run(shape: tuple[int, int, int], generator: torch.Generator) -> Pair:
        rows, inputs, outputs = shape
        x = drawn_inputs(generator, rows, inputs)
        form = (outputs, inputs)
        w = torch.randint(-127, 128, form, dtype=torch.int8, generator=generator)
        scale = torch.rand(outputs, generator=generator) * 1e-3 + 1e-4
        packed = pack_linear(w.to(device))
        weight = (packed, scale.to(device), torch.zeros(0), None)
        y = linear_u8(x.to(device), 0.02, 77, *weight)
        exact_x = (x.double() - 77) * 0.02
        return y.cpu(), exact_product(exact_x, w, scale)

    # An even shape, and an odd one that must be padded on all sides.
    for shape in ((64, 128, 64), (3, 50, 21)):
        reason = fault("torch._int_mm", 1e-4, partial(run, shape))
        if reason:
            return reason
    return ""


@cache
def missing_fp8(device: str, per_row: bool) -> str:
    """Return why a device multiplies no fp8 matrices with such scales; empty when it was right."""

    def run(generator: torch.Generator) -> Pair:
        x = torch.randn(19, 70, generator=generator)
        w = torch.randn(40, 70, generator=generator)
        a, a_scale = quantize_fp8(x.to(device), per_row)
        b, b_scale = quantize_fp8(w.to(device), per_row)
        unpadded = b[:, :70].view(torch.uint8)
        packed = pack_fp8(unpadded)
        scale = b_scale
        if per_row:
            missing_rows = packed.shape[0] - 40
            scale = pad(b_scale[:, 0], (0, missing_rows))
        product = linear_fp8(a, a_scale, packed, scale)
        y = product[:, :40].cpu()
        exact_a = a.cpu().double() * a_scale.cpu()
        exact_b = b.cpu().double() * b_scale.cpu()
        return y, exact_a @ exact_b.T

    return fault("torch._scaled_mm", 0.01, run)


@cache
def missing_int4(device: torch.device) -> str:
    """Return why a device has no kernel for weights of 4 bits; empty when it was right."""
    return int4_fault(
        "torch.ops.aten._weight_int4pack_mm", pack_int4, linear_int4, device
    )
