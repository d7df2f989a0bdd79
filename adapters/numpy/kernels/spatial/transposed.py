"""Transposed convolution and Col2Im: products first, then overlapping sums."""

from __future__ import annotations

from typing import Any

import numpy as np

from octavo.adapters.numpy.kernels.registry import Build, Kernel, compiled, operator


def _fold(
    columns: np.ndarray, full: tuple[int, ...], strides: tuple[int, ...], dilations: tuple[int, ...]
) -> np.ndarray:
    """Add (N, C, kernel..., positions...) into (N, C, full...): one strided addition per kernel element."""
    n = len(full)
    kernel, positions = columns.shape[2 : 2 + n], columns.shape[2 + n :]
    out = np.zeros((*columns.shape[:2], *full), columns.dtype)
    for offset in np.ndindex(*kernel):
        where = tuple(
            slice(o * d, o * d + (p - 1) * s + 1, s)
            for o, d, p, s in zip(offset, dilations, positions, strides, strict=True)
        )
        out[(slice(None), slice(None), *where)] += columns[(slice(None), slice(None), *offset)]
    return out


@compiled("ConvTranspose")
def conv_transpose(build: Build) -> Kernel:
    """The gradient of a convolution with respect to its input, with groups, output padding and any auto_pad."""
    groups, auto = build.get("group", 1), build.get("auto_pad", "NOTSET")

    def run(x: np.ndarray, w: np.ndarray, b: np.ndarray | None = None) -> np.ndarray:
        n = x.ndim - 2
        kernel, spatial = w.shape[2:], x.shape[2:]
        strides, dilations = build.get("strides", (1,) * n), build.get("dilations", (1,) * n)
        extra = build.get("output_padding", (0,) * n)
        full = tuple(
            (i - 1) * s + (k - 1) * d + 1
            for i, s, k, d in zip(spatial, strides, kernel, dilations, strict=True)
        )
        wanted = build.get("output_shape", None)
        if wanted is not None or auto in ("SAME_UPPER", "SAME_LOWER"):
            sizes = (
                tuple(wanted)[-n:]
                if wanted is not None
                else tuple(i * s for i, s in zip(spatial, strides, strict=True))
            )
            begins, ends = [], []
            for f, e, size in zip(full, extra, sizes, strict=True):
                total = max(f + e - size, 0)
                less, more = total // 2, total - total // 2
                begins.append(more if auto == "SAME_LOWER" else less)
                ends.append(less if auto == "SAME_LOWER" else more)
        else:
            pads = build.get("pads", (0,) * 2 * n) if auto != "VALID" else (0,) * 2 * n
            begins, ends = list(pads[:n]), list(pads[n:])
            sizes = tuple(
                f + e - a - z for f, e, a, z in zip(full, extra, begins, ends, strict=True)
            )
        m = w.shape[1]
        flat = x.reshape(x.shape[0], groups, x.shape[1] // groups, -1)
        weight = w.reshape(groups, w.shape[0] // groups, -1)
        columns = np.matmul(weight.transpose(0, 2, 1), flat).reshape(
            x.shape[0], groups * m, *kernel, *spatial
        )
        room = tuple(max(f, a + s) for f, a, s in zip(full, begins, sizes, strict=True))
        y = _fold(columns, room, strides, dilations)[
            (
                slice(None),
                slice(None),
                *(slice(a, a + s) for a, s in zip(begins, sizes, strict=True)),
            )
        ]
        return y if b is None else y + b.reshape(1, -1, *(1,) * n)

    return run


@operator("Col2Im")
def col2im(
    x: np.ndarray,
    image: np.ndarray,
    block: np.ndarray,
    *,
    dilations: Any = None,
    pads: Any = None,
    strides: Any = None,
) -> Any:
    """Put columns of blocks back into an image, adding where they overlap."""
    size, kernel = tuple(int(i) for i in image), tuple(int(k) for k in block)
    n = len(size)
    dilations, strides, pads = dilations or (1,) * n, strides or (1,) * n, pads or (0,) * 2 * n
    full = tuple(s + pads[i] + pads[i + n] for i, s in enumerate(size))
    positions = tuple(
        (f - (k - 1) * d - 1) // s + 1
        for f, k, d, s in zip(full, kernel, dilations, strides, strict=True)
    )
    columns = x.reshape(x.shape[0], -1, *kernel, *positions)
    y = _fold(columns, full, strides, dilations)
    return y[(slice(None), slice(None), *(slice(pads[i], pads[i] + s) for i, s in enumerate(size)))]
