"""Products in low precision on devices other than the CPU: int8 through ``torch._int_mm``, fp8 through ``torch._scaled_mm``, 4 bits
through ``torch._weight_int4pack_mm``; and whether a device really has them.

The functions have the names and arguments of those of :mod:`~.kernels`, so that a layer is one class and only asks :func:`on` its
device. int8 and fp8 products exist on the CPU too, where the tests run them; of the 4-bit one the CPU has a version of its own.
"""

from __future__ import annotations

import sys
from functools import cache
from types import ModuleType

import torch
from torch import nn

from . import onednn
from .faults import fault
from .posts import post

Tensor = torch.Tensor
_TABLE: dict[str, ModuleType] = {"cpu": onednn}
_ROWS = 17
"""cuBLAS multiplies int8 only for more than 16 rows, and widths that are multiples of 8."""
_FP8_LARGEST = 448.0
_TINY = 1e-30


def on(device: torch.device) -> ModuleType:
    """Return the module with ``pack_linear``, ``linear_u8``, ``pack_int4``, ``linear_int4`` and ``missing_int4`` for a device."""
    return _TABLE.get(device.type, sys.modules[__name__])


def _padded(x: Tensor, rows: int, columns: int) -> Tensor:
    """Return a matrix with zeros below and on the right, up to multiples of ``columns`` and to at least ``rows``."""
    missing = (0, -x.shape[1] % columns, 0, max(0, rows - x.shape[0]))
    return nn.functional.pad(x, missing) if any(missing) else x


def pack_linear(codes: Tensor) -> tuple[Tensor, Tensor]:
    """Lay int8 codes (outputs, inputs) out for :func:`linear_u8`: (inputs, outputs) in C order, widths multiples of 8; and row sums."""
    # In another order cuBLAS gives wrong numbers without a word.
    weight = _padded(_padded(codes, 0, 8).t().contiguous(), 0, 8).contiguous()
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
    """Multiply uint8 codes (..., inputs) by a packed weight and apply ``then``; the result is float, or uint8 with the given scale.

    The product takes signed codes, x - 128; what that leaves out is (128 - zero point) times the sums of the weight's rows.
    """
    weight, sums = packed
    flat = x.reshape(-1, x.shape[-1]).contiguous()
    signed = _padded(flat.bitwise_xor(128).view(torch.int8), _ROWS, 8)
    total = torch._int_mm(signed, weight)[: flat.shape[0], : sums.shape[0]]
    y = (total + (128 - x_zero_point) * sums).float() * (scale * x_scale)
    y = post(then, y if bias is None else y + bias)
    if dtype == torch.uint8:
        y = (torch.round(y / out_scale) + out_zero_point).clamp_(0, 255)
    return y.to(dtype).view(*x.shape[:-1], sums.shape[0])


def pack_fp8(codes: Tensor) -> Tensor:
    """Lay bit patterns of fp8_e4m3fn (outputs, inputs) out for :func:`linear_fp8`: both widths multiples of 16."""
    return _padded(codes, -(-codes.shape[0] // 16) * 16, 16).contiguous().view(torch.float8_e4m3fn)


def quantize_fp8(x: Tensor, per_row: bool) -> tuple[Tensor, Tensor]:
    """Return a float matrix as fp8_e4m3fn, its width a multiple of 16, and its scales: (rows, 1) or one, float32."""
    x = x.float()
    largest = (x.abs().amax(1, keepdim=True) if per_row else x.abs().amax()).clamp(min=_TINY)
    scale = largest / _FP8_LARGEST
    return _padded((x / scale).clamp(-_FP8_LARGEST, _FP8_LARGEST), 0, 16).to(
        torch.float8_e4m3fn
    ), scale


def linear_fp8(x: Tensor, x_scale: Tensor, packed: Tensor, scale: Tensor) -> Tensor:
    """Multiply fp8 rows by a packed weight: bfloat16, with the padded columns.

    Args:
        x: From :func:`quantize_fp8`.
        x_scale: Its scales.
        packed: From :func:`pack_fp8`.
        scale: float32 (padded outputs,) beside scales of rows; one beside one.
    """
    return torch._scaled_mm(
        x,
        packed.t(),
        x_scale,
        scale if scale.ndim == 0 else scale[None, :],
        out_dtype=torch.bfloat16,
    )


def pack_int4(codes: Tensor, scale: Tensor, zero: Tensor) -> tuple[Tensor, Tensor]:
    """Lay codes 0 to 15 (outputs, inputs), int32, out for :func:`linear_int4`, with scales and zeros (outputs, groups)."""
    pairs = (codes[:, ::2] << 4 | codes[:, 1::2]).to(torch.uint8)
    tiles = next(t for t in (8, 4, 2) if codes.shape[1] % (16 * t) == 0)
    packed = torch.ops.aten._convert_weight_to_int4pack(pairs.contiguous(), tiles)
    return packed, torch.stack([scale, zero], -1).transpose(0, 1).contiguous().to(torch.bfloat16)


def linear_int4(x: Tensor, packed: Tensor, group: int, scales: Tensor) -> Tensor:
    """Return x W^T in bfloat16 for float ``x`` (rows, inputs) and 4-bit codes, decoded inside the kernel."""
    y: Tensor = torch.ops.aten._weight_int4pack_mm(
        x.to(torch.bfloat16).contiguous(), packed, group, scales
    )
    return y


@cache
def missing_linear(device: str) -> str:
    """Return why a device multiplies no int8 matrices; empty when it did, at an even and an odd shape, and the numbers were right."""

    def run(
        generator: torch.Generator, rows: int, inputs: int, outputs: int
    ) -> tuple[Tensor, Tensor]:
        x = torch.randint(0, 256, (rows, inputs), dtype=torch.uint8, generator=generator)
        w = torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8, generator=generator)
        scale = torch.rand(outputs, generator=generator) * 1e-3 + 1e-4
        y = linear_u8(
            x.to(device),
            0.02,
            77,
            pack_linear(w.to(device)),
            scale.to(device),
            torch.zeros(0),
            None,
        )
        return y.cpu(), (x.double() - 77) * 0.02 @ (w.double() * scale[:, None]).T

    return fault("torch._int_mm", 1e-4, lambda g: run(g, 64, 128, 64)) or fault(
        "torch._int_mm", 1e-4, lambda g: run(g, 3, 50, 21)
    )


@cache
def missing_fp8(device: str, per_row: bool) -> str:
    """Return why a device multiplies no fp8 matrices with such scales; empty when it did and the numbers were right."""

    def run(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x, w = torch.randn(19, 70, generator=generator), torch.randn(40, 70, generator=generator)
        a, a_scale = quantize_fp8(x.to(device), per_row)
        b, b_scale = quantize_fp8(w.to(device), per_row)
        packed = pack_fp8(b[:, :70].view(torch.uint8))
        scale = nn.functional.pad(b_scale[:, 0], (0, packed.shape[0] - 40)) if per_row else b_scale
        expected = (a.cpu().double() * a_scale.cpu()) @ (b.cpu().double() * b_scale.cpu()).T
        return linear_fp8(a, a_scale, packed, scale)[:, :40].cpu(), expected

    return fault("torch._scaled_mm", 0.01, run)


@cache
def _has_int4(device: str) -> str:
    def run(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x = torch.randn(3, 64, generator=generator)
        codes = torch.randint(0, 16, (32, 64), dtype=torch.int32, generator=generator)
        scale = torch.rand(32, 2, generator=generator) + 0.5
        packed, scales = pack_int4(codes.to(device), scale.to(device), -scale.to(device))
        weight = (codes.double() - 8).view(32, 2, 32) * scale[..., None] - scale[..., None]
        return linear_int4(x.to(device), packed, 32, scales).cpu(), x.double() @ weight.view(
            32, 64
        ).T

    return fault("torch.ops.aten._weight_int4pack_mm", 0.02, run)


def missing_int4(device: torch.device) -> str:
    """Return why a device has no kernel for weights of 4 bits; empty when it was run and was right."""
    return _has_int4(str(device))
