"""Which windows of a convolution meet its input, and zeros laid around inputs.

The integer kernels do not pad all inputs rightly. ``torch.ops.onednn.qconv_pointwise`` leaves
outputs unwritten, on some processors, whose windows lie wholly in the padding: they are whatever
the memory held. Over one channel a group, three-dimensional kernels answer wrongly where padding
is deeper than the input. Zeros that are part of the input are read like any other number, so both
go away.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import nn

Tensor = torch.Tensor
Geometry = tuple[Sequence[int], Sequence[int], Sequence[int], int]
"""Stride, padding, dilation and groups of a convolution."""


def unit_geometry(dims: int, padding: int = 0) -> Geometry:
    """Return the geometry of a convolution over so many axes that skips nothing."""
    one = [1] * dims
    return one, [padding] * dims, one, 1


def output_places(
    places: Sequence[int], kernel: Sequence[int], geometry: Geometry
) -> list[int]:
    """Return the output's size on each spatial axis (torch.nn.Conv2d, "Shape")."""
    stride, padding, dilation, _ = geometry
    axes = zip(places, kernel, stride, padding, dilation, strict=True)
    return [_windows(*axis) for axis in axes]


def _windows(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    reach = dilation * (kernel - 1) + 1
    places = size + 2 * padding
    return (places - reach) // stride + 1


@lru_cache(maxsize=4096)
def misses(size: int, kernel: int, stride: int, padding: int, dilation: int) -> bool:
    """Return whether some window on one axis has all of its taps in the padding.

    Args:
        size: Places of the input.
        kernel: Taps.
        stride: Between windows.
        padding: Zeros at either end.
        dilation: Between taps.
    """
    windows = _windows(size, kernel, stride, padding, dilation)
    if windows <= 0:
        return False
    last_start = (windows - 1) * stride - padding
    if last_start >= size:
        return True
    # Only those that begin in the padding are looked at; the others begin in the input.
    early = min(windows, -(-padding // stride))
    end = early * stride - padding
    starts = range(-padding, end, stride)
    return any(_misses_from(start, size, kernel, dilation) for start in starts)


def _misses_from(start: int, size: int, kernel: int, dilation: int) -> bool:
    """Return whether a window that begins before the input has no tap inside of it."""
    first_inside = -(start // dilation)
    place = start + first_inside * dilation
    return first_inside >= kernel or place >= size


def pads_itself(
    places: Sequence[int], weight: Sequence[int], geometry: Geometry
) -> bool:
    """Return whether the integer kernel may pad an input by itself.

    Args:
        places: The input's spatial shape.
        weight: Shape of the weight: (outputs, inputs / groups, *kernel).
        geometry: Of the convolution.
    """
    stride, padding, dilation, _ = geometry
    if not any(padding):
        return True
    is_depthwise_3d = len(weight) == 5 and weight[1] == 1
    if is_depthwise_3d:
        return False
    axes = zip(places, weight[2:], stride, padding, dilation, strict=True)
    return not any(misses(*axis) for axis in axes)


def padded(
    codes: Tensor, zero_point: int, weight: Sequence[int], geometry: Geometry
) -> tuple[Tensor, Geometry]:
    """Return codes and a geometry of the same convolution that the integer kernel serves.

    Args:
        codes: uint8 (batch, channels, *places).
        zero_point: Code of zero.
        weight: Shape of the weight: (outputs, inputs / groups, *kernel).
        geometry: Of the convolution.
    """
    if pads_itself(codes.shape[2:], weight, geometry):
        return codes, geometry
    stride, padding, dilation, groups = geometry
    # torch.nn.functional.pad takes both ends of the last axis first.
    around: list[int] = []
    for zeros in reversed(padding):
        around += [zeros, zeros]
    wider = nn.functional.pad(codes, around, value=zero_point)
    no_padding = [0] * len(padding)
    return wider, (stride, no_padding, dilation, groups)
