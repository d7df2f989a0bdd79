"""Where the windows of convolutions and poolings go.

Source: the ONNX operators Conv and AveragePool, which define auto_pad and ceil_mode.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from octavo.adapters.numpy.graph import Array
from octavo.adapters.numpy.kernels.registry import Build

Lengths = tuple[int, ...]
"""A length for each spatial axis."""

Padding = tuple[tuple[int, int], ...]
"""(before, after) for each spatial axis."""


class _Axis(NamedTuple):
    """One spatial axis of a window."""

    kernel: int
    stride: int
    dilation: int

    @property
    def reach(self) -> int:
        """How many input positions a window covers."""
        return (self.kernel - 1) * self.dilation + 1


def halves(total: int, upper: bool) -> tuple[int, int]:
    """Split padding into (before, after); ``upper`` puts what is odd behind."""
    less = total // 2
    more = total - less
    return (less, more) if upper else (more, less)


@dataclass(frozen=True, slots=True)
class Geometry:
    """Where a window goes: kernel, strides, dilations and padding per spatial axis."""

    kernel: Lengths
    strides: Lengths
    dilations: Lengths
    pads: Lengths
    auto_pad: str = "NOTSET"
    ceil_mode: int = 0

    @classmethod
    def read(cls, build: Build, kernel: Lengths) -> Geometry:
        """Read a node's attributes; ones and zeros where they are left out."""
        n = len(kernel)
        return cls(
            kernel,
            tuple(build.get("strides", (1,) * n)),
            tuple(build.get("dilations", (1,) * n)),
            tuple(build.get("pads", (0,) * (2 * n))),
            build.get("auto_pad", "NOTSET"),
            build.get("ceil_mode", 0),
        )

    def axes(self) -> list[_Axis]:
        """Return the window's spatial axes."""
        parts = zip(self.kernel, self.strides, self.dilations, strict=True)
        return [_Axis(*axis) for axis in parts]

    def padding(self, spatial: Lengths) -> Padding:
        """Return the padding of an input of this size."""
        n = len(self.kernel)
        if self.auto_pad == "VALID":
            return ((0, 0),) * n
        if self.auto_pad not in ("SAME_UPPER", "SAME_LOWER"):
            return tuple(zip(self.pads[:n], self.pads[n:], strict=True))
        pairs = []
        for size, axis in zip(spatial, self.axes(), strict=True):
            count = -(-size // axis.stride)
            covered = (count - 1) * axis.stride + axis.reach
            total = max(covered - size, 0)
            pairs.append(halves(total, self.auto_pad == "SAME_UPPER"))
        return tuple(pairs)

    def outputs(self, spatial: Lengths, padding: Padding) -> Lengths:
        """Return the output's size."""
        sizes = []
        for size, axis, (before, after) in zip(
            spatial, self.axes(), padding, strict=True
        ):
            room = size + before + after - axis.reach
            steps = room // axis.stride
            if self.ceil_mode:
                steps = -(-room // axis.stride)
                # A window must not begin in the padding behind the input.
                if steps * axis.stride >= size + before:
                    steps -= 1
            sizes.append(steps + 1)
        return tuple(sizes)

    def reached(self, spatial: Lengths, padding: Padding, outputs: Lengths) -> Padding:
        """Return the padding, behind at least as far as windows reach: ceil_mode goes beyond."""
        pairs = []
        for size, axis, count, (before, after) in zip(
            spatial, self.axes(), outputs, padding, strict=True
        ):
            end = (count - 1) * axis.stride + axis.reach
            pairs.append((before, max(after, end - size - before)))
        return tuple(pairs)


def channels_last(x: Array) -> Array:
    """View (N, C, ...) as (N, ..., C)."""
    return x.transpose(0, *range(2, x.ndim), 1)


def channels_first(x: Array) -> Array:
    """View (N, ..., C) as (N, C, ...)."""
    return x.transpose(0, x.ndim - 1, *range(1, x.ndim - 1))


def padded(x: Array, padding: Padding, fill: Any = 0) -> Array:
    """Return channels-last ``x`` in contiguous memory with its border filled."""
    if not any(before or after for before, after in padding):
        return np.ascontiguousarray(x)
    sizes, inside = [], []
    for size, (before, after) in zip(x.shape[1:-1], padding, strict=True):
        sizes.append(before + size + after)
        inside.append(slice(before, before + size))
    result = np.full((x.shape[0], *sizes, x.shape[-1]), fill, dtype=x.dtype)
    result[(slice(None), *inside)] = x
    return result


def windows(x: Array, geometry: Geometry, outputs: Lengths) -> Array:
    """View padded channels-last ``x`` as (N, outputs..., kernel..., C) without a copy."""
    per_image, *steps, per_channel = x.strides
    between = [step * s for step, s in zip(steps, geometry.strides, strict=True)]
    within = [step * d for step, d in zip(steps, geometry.dilations, strict=True)]
    shape = (x.shape[0], *outputs, *geometry.kernel, x.shape[-1])
    strides = (per_image, *between, *within, per_channel)
    return as_strided(x, shape, strides, writeable=False)
