"""Values of activations as uint8 codes: over one given scale, or over a scale of each row."""

from __future__ import annotations

import warnings
from functools import cache

import torch

from .faults import Pair, fault

Tensor = torch.Tensor

_MAGIC = 12582912.0
"""1.5 * 2**23: adding it leaves round-to-nearest-even(x) in the low bits of a float32."""
_SMALL = 2**17
"""Below so many elements fewer calls are faster; above, two readings beat a copy."""
_BLOCK = 2**19
"""So many elements are worked on at a time.

What is made of them on the way stays in the cache, and no large temporary is allocated.
"""
_TINY = 1e-30
"""Stands for the largest magnitude of a row of zeros: its scale must not be zero."""


@cache
def _constant(value: float, device: torch.device) -> Tensor:
    return torch.full((), value, device=device)


def as_float32(x: Tensor) -> Tensor:
    """Return real numbers as float32.

    Raises:
        TypeError: If they are complex, whose imaginary part a conversion would drop.
    """
    if x.dtype == torch.float32:
        return x
    if x.is_complex():
        raise TypeError(f"expected real numbers, got {x.dtype}")
    return x.float()


def quantize_u8(
    x: Tensor,
    scale: float,
    zero_point: int,
    low: int,
    high: int,
    factors: Tensor | None = None,
) -> Tensor:
    """Return uint8 codes clip(round(x / scale) + zero_point, low, high), same shape.

    One pass over memory on a CPU. Elsewhere, and with factors, three: the rounding is a float32
    addition, the conversion takes the low byte. On a CPU large tensors go through them a block at a
    time, which stays in the cache.

    Args:
        x: Float values.
        scale: Their scale.
        zero_point: Code of zero.
        low: Smallest code.
        high: Largest code.
        factors: One float32 multiplier per channel of the last axis, in place of 1 / scale.
    """
    if torch.compiler.is_compiling():
        rounded = _traced(x, scale, zero_point, factors)
        return rounded.clamp(low, high).to(torch.uint8)
    x = as_float32(x)
    if factors is None and x.device.type == "cpu" and not missing_quantize():
        codes = _quantized(x, scale, zero_point)
        if (low, high) == (0, 255):
            return codes
        return codes.clamp_(low, high)
    return _rounded(x, scale, zero_point, low, high, factors)


def _traced(x: Tensor, scale: float, zero_point: int, factors: Tensor | None) -> Tensor:
    """Return the rounded numbers in operations that a compiler can fuse."""
    # Torch's kernel adds the zero point before it rounds, and multiplies by the inverse in float32:
    # so does this.
    start = torch.full((), float(zero_point), device=x.device)
    steps = factors
    if steps is None:
        one = torch.full((), 1.0, device=x.device)
        steps = one / torch.full((), scale, device=x.device)
    return torch.round(torch.addcmul(start, x.float(), steps))


def _quantized(x: Tensor, scale: float, zero_point: int) -> Tensor:
    """Quantize over the whole of uint8 and return the codes as a plain tensor, without copying."""
    made = torch.quantize_per_tensor(x, scale, zero_point, torch.quint8)
    codes = torch.empty(0, dtype=torch.uint8)
    return codes.set_(made.untyped_storage(), 0, made.shape, made.stride())


def _rounded(
    x: Tensor,
    scale: float,
    zero_point: int,
    low: int,
    high: int,
    factors: Tensor | None,
) -> Tensor:
    start = _constant(_MAGIC + zero_point, x.device)

    def shifted(x: Tensor, out: Tensor | None = None) -> Tensor:
        if factors is None:
            y = torch.add(start, x, alpha=1.0 / scale, out=out)
        else:
            y = torch.addcmul(start, x, factors, out=out)
        # The bits of the sum end in the code, so that its low byte is the code.
        return y.clamp_(_MAGIC + low, _MAGIC + high).view(torch.int32)

    if x.device.type != "cpu" or x.numel() <= _BLOCK:
        return shifted(x).to(torch.uint8)
    width = x.shape[-1]
    rows = x.reshape(-1, width)
    size = max(1, _BLOCK // width)
    room = torch.empty(size, width)
    codes = torch.empty(rows.shape, dtype=torch.uint8)
    blocks = torch.split(rows, size)
    places = torch.split(codes, size)
    for block, into in zip(blocks, places, strict=True):
        own_room = room[: len(block)]
        into.copy_(shifted(block, own_room))
    return codes.view(x.shape)


@cache
def missing_quantize() -> str:
    """Return why torch's own quantization of a tensor cannot be used; empty when it was right."""

    def run(generator: torch.Generator) -> Pair:
        x = torch.randn(3, 33, generator=generator).t()
        exact = torch.round(x.double() / 0.02) + 77
        with warnings.catch_warnings():
            # torch announces the end of its quantized tensors, once in a process.
            warnings.simplefilter("ignore")
            codes = _quantized(x, 0.02, 77)
        return codes, exact.clamp(0, 255)

    return fault("torch.quantize_per_tensor", 0.005, run)


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return uint8 codes with zero point 128, and a scale of each row of the last axis.

    A row's largest magnitude becomes 127, so that nothing needs clamping; a row of zeros stays
    zeros.

    Returns:
        The codes, same shape; the scales, float32, shape (..., 1).
    """
    x = as_float32(x)
    if x.numel() < _SMALL:
        largest = x.abs().amax(-1, keepdim=True)
    else:
        highest = x.amax(-1, keepdim=True)
        lowest = x.amin(-1, keepdim=True)
        largest = torch.maximum(highest, lowest.neg_())
    largest = largest.clamp_(min=_TINY)
    steps = 127.0 / largest
    if torch.compiler.is_compiling():
        shifted = torch.round(x * steps) + 128
        return shifted.clamp(0, 255).to(torch.uint8), largest / 127.0
    start = _constant(_MAGIC + 128, x.device)
    sums = torch.addcmul(start, x, steps)
    codes = sums.view(torch.int32).to(torch.uint8)
    return codes, largest / 127.0
