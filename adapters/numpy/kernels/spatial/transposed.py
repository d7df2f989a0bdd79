"""Transposed convolution and Col2Im: products first, then overlapping sums.

Source: the ONNX operators ConvTranspose and Col2Im.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from octavo.adapters.numpy.graph import Array
from octavo.adapters.numpy.kernels.axes import along, integers
from octavo.adapters.numpy.kernels.registry import Build, Kernel, compiled, operator

from .geometry import Lengths, halves


def _fold(columns: Array, full: Lengths, strides: Lengths, dilations: Lengths) -> Array:
    """Add (N, C, kernel..., positions...) into (N, C, full...).

    One strided addition per kernel element.
    """
    n = len(full)
    kernel = columns.shape[2 : 2 + n]
    positions = columns.shape[2 + n :]
    everything = (slice(None), slice(None))
    out = np.zeros((*columns.shape[:2], *full), columns.dtype)
    for offset in np.ndindex(*kernel):
        where: list[Any] = []
        for at, dilation, count, stride in zip(
            offset, dilations, positions, strides, strict=True
        ):
            first = at * dilation
            last = first + (count - 1) * stride
            where.append(slice(first, last + 1, stride))
        out[(*everything, *where)] += columns[(*everything, *offset)]
    return out


class _Frame(NamedTuple):
    """One spatial axis of a transposed convolution.

    Attributes:
        full: What the products reach.
        begin: How much of it is cut off in front.
        size: Of the output.
    """

    full: int
    begin: int
    size: int

    @property
    def end(self) -> int:
        """Where the output ends, in what the products reach."""
        return self.begin + self.size


@dataclass(frozen=True, slots=True)
class _Geometry:
    """The attributes of a transposed convolution, per spatial axis.

    Attributes:
        strides: Of the windows.
        dilations: Of the windows.
        pads: What is cut off in front, then behind.
        extra: What is added behind.
        wanted: Size of the output; None where the padding determines it.
        auto_pad: How the padding is found.
    """

    strides: Lengths
    dilations: Lengths
    pads: Lengths
    extra: Lengths
    wanted: Lengths | None
    auto_pad: str

    @classmethod
    def read(cls, build: Build, n: int) -> _Geometry:
        """Read a node's attributes for ``n`` axes."""
        auto_pad = build.get("auto_pad", "NOTSET")
        none = (0,) * 2 * n
        wanted = build.get("output_shape", None)
        return cls(
            build.get("strides", (1,) * n),
            build.get("dilations", (1,) * n),
            none if auto_pad == "VALID" else build.get("pads", none),
            build.get("output_padding", (0,) * n),
            # It may state the batch and the channels too.
            None if wanted is None else tuple(wanted)[-n:],
            auto_pad,
        )

    def frames(self, spatial: Lengths, kernel: Lengths) -> list[_Frame]:
        """Return the axes for an input and a kernel of these sizes."""
        return [self._frame(i, spatial[i], kernel[i]) for i in range(len(spatial))]

    def _frame(self, axis: int, before: int, kernel: int) -> _Frame:
        stride = self.strides[axis]
        reach = (kernel - 1) * self.dilations[axis] + 1
        full = (before - 1) * stride + reach
        room = full + self.extra[axis]
        is_same = self.auto_pad in ("SAME_UPPER", "SAME_LOWER")
        if self.wanted is None and not is_same:
            begin = self.pads[axis]
            behind = self.pads[axis + len(self.strides)]
            return _Frame(full, begin, room - begin - behind)
        size = before * stride if self.wanted is None else self.wanted[axis]
        cut = max(room - size, 0)
        begin, _ = halves(cut, self.auto_pad != "SAME_LOWER")
        return _Frame(full, begin, size)


@compiled("ConvTranspose")
def conv_transpose(build: Build) -> Kernel:
    """ONNX ConvTranspose: the gradient of a convolution with respect to its input.

    With groups, output padding and any auto_pad.
    """
    groups = build.get("group", 1)

    def run(x: Array, w: Array, b: Array | None = None) -> Array:
        kernel = w.shape[2:]
        spatial = x.shape[2:]
        geometry = _Geometry.read(build, len(spatial))
        frames = geometry.frames(spatial, kernel)
        # Output padding may reach beyond the products; there the output is the bias.
        room = tuple(max(frame.full, frame.end) for frame in frames)
        columns = _products(x, w, groups)
        inside: list[Any] = [slice(frame.begin, frame.end) for frame in frames]
        whole = _fold(columns, room, geometry.strides, geometry.dilations)
        y: Array = whole[(slice(None), slice(None), *inside)]
        if b is not None:
            y = y + along(b, 1, x.ndim)
        return y

    return run


def _products(x: Array, w: Array, groups: int) -> Array:
    """Return what each input position adds to its window: (N, channels, kernel..., input...)."""
    batch, channels, *spatial = x.shape
    per_group = channels // groups
    flat = x.reshape(batch, groups, per_group, -1)
    weight = w.reshape(groups, per_group, -1).transpose(0, 2, 1)
    products: Array = np.matmul(weight, flat)
    return products.reshape(batch, groups * w.shape[1], *w.shape[2:], *spatial)


@operator("Col2Im")
def col2im(
    x: Array,
    image: Array,
    block: Array,
    *,
    dilations: Any = None,
    pads: Any = None,
    strides: Any = None,
) -> Any:
    """ONNX Col2Im: put columns of blocks back into an image, adding where they overlap."""
    sizes = integers(image) or ()
    kernel = integers(block) or ()
    n = len(sizes)
    dilations = dilations or (1,) * n
    strides = strides or (1,) * n
    pads = pads or (0,) * 2 * n
    full: list[int] = []
    positions: list[int] = []
    inside: list[Any] = []
    for i, size in enumerate(sizes):
        before, after = pads[i], pads[i + n]
        padded = before + size + after
        reach = (kernel[i] - 1) * dilations[i] + 1
        full.append(padded)
        positions.append((padded - reach) // strides[i] + 1)
        inside.append(slice(before, before + size))
    columns = x.reshape(x.shape[0], -1, *kernel, *positions)
    whole = _fold(columns, tuple(full), strides, dilations)
    return whole[(slice(None), slice(None), *inside)]
