"""Transposed convolution and Col2Im: products first, then overlapping sums.

Source: the ONNX operators ConvTranspose and Col2Im.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from octavo.adapters.numpy.graph import Array
from octavo.adapters.numpy.kernels.axes import integers
from octavo.adapters.numpy.kernels.registry import Build, Kernel, compiled, operator

from .geometry import Lengths, halves


def _fold(columns: Array, full: Lengths, strides: Lengths, dilations: Lengths) -> Array:
    """Add (N, C, kernel..., positions...) into (N, C, full...).

    One strided addition per kernel element.
    """
    n = len(full)
    kernel, positions = columns.shape[2 : 2 + n], columns.shape[2 + n :]
    out = np.zeros((*columns.shape[:2], *full), columns.dtype)
    for offset in np.ndindex(*kernel):
        where: list[Any] = []
        for at, dilation, count, stride in zip(offset, dilations, positions, strides, strict=True):
            first = at * dilation
            where.append(slice(first, first + (count - 1) * stride + 1, stride))
        out[(..., *where)] += columns[(slice(None), slice(None), *offset)]
    return out


class _Frame(NamedTuple):
    """The sizes of a transposed convolution, per spatial axis.

    Attributes:
        full: What the products reach.
        begins: How much of it is cut off in front.
        sizes: Of the output.
    """

    full: Lengths
    begins: Lengths
    sizes: Lengths


def _frame(build: Build, kernel: Lengths, spatial: Lengths) -> _Frame:
    n = len(spatial)
    auto_pad = build.get("auto_pad", "NOTSET")
    strides, dilations = build.get("strides", (1,) * n), build.get("dilations", (1,) * n)
    extra = build.get("output_padding", (0,) * n)
    full = tuple(
        (i - 1) * s + (k - 1) * d + 1
        for i, s, k, d in zip(spatial, strides, kernel, dilations, strict=True)
    )
    wanted = build.get("output_shape", None)
    is_same = auto_pad in ("SAME_UPPER", "SAME_LOWER")
    if wanted is None and not is_same:
        none = (0,) * 2 * n
        pads = none if auto_pad == "VALID" else build.get("pads", none)
        begins, ends = tuple(pads[:n]), pads[n:]
        rows = zip(full, extra, begins, ends, strict=True)
        return _Frame(full, begins, tuple(f + e - before - after for f, e, before, after in rows))
    if wanted is not None:
        sizes = tuple(wanted)[-n:]
    else:
        sizes = tuple(i * s for i, s in zip(spatial, strides, strict=True))
    cut = []
    for f, e, size in zip(full, extra, sizes, strict=True):
        total = max(f + e - size, 0)
        cut.append(halves(total, auto_pad != "SAME_LOWER")[0])
    return _Frame(full, tuple(cut), sizes)


@compiled("ConvTranspose")
def conv_transpose(build: Build) -> Kernel:
    """ONNX ConvTranspose: the gradient of a convolution with respect to its input.

    With groups, output padding and any auto_pad.
    """
    groups = build.get("group", 1)

    def run(x: Array, w: Array, b: Array | None = None) -> Array:
        batch, channels, *rest = x.shape
        spatial, kernel = tuple(rest), w.shape[2:]
        n = len(spatial)
        frame = _frame(build, kernel, spatial)
        flat = x.reshape(batch, groups, channels // groups, -1)
        weight = w.reshape(groups, channels // groups, -1)
        products = np.matmul(weight.transpose(0, 2, 1), flat)
        columns = products.reshape(batch, groups * w.shape[1], *kernel, *spatial)
        ends = [a + size for a, size in zip(frame.begins, frame.sizes, strict=True)]
        # Output padding may reach beyond the products; there the output is the bias.
        room = tuple(max(f, end) for f, end in zip(frame.full, ends, strict=True))
        strides, dilations = build.get("strides", (1,) * n), build.get("dilations", (1,) * n)
        inside: list[Any] = [slice(a, end) for a, end in zip(frame.begins, ends, strict=True)]
        y = _fold(columns, room, strides, dilations)[(..., *inside)]
        return y if b is None else y + b.reshape(1, -1, *(1,) * n)

    return run


@operator("Col2Im")
def col2im(
    x: Array, image: Array, block: Array, *, dilations: Any = None, pads: Any = None, strides: Any = None
) -> Any:  # fmt: skip
    """ONNX Col2Im: put columns of blocks back into an image, adding where they overlap."""
    sizes, kernel = integers(image) or (), integers(block) or ()
    n = len(sizes)
    dilations = dilations or (1,) * n
    strides = strides or (1,) * n
    pads = pads or (0,) * 2 * n
    full: list[int] = []
    positions: list[int] = []
    inside: list[Any] = []
    for i, size in enumerate(sizes):
        padded = size + pads[i] + pads[i + n]
        reach = (kernel[i] - 1) * dilations[i] + 1
        full.append(padded)
        positions.append((padded - reach) // strides[i] + 1)
        inside.append(slice(pads[i], pads[i] + size))
    columns = x.reshape(x.shape[0], -1, *kernel, *positions)
    return _fold(columns, tuple(full), strides, dilations)[(..., *inside)]
