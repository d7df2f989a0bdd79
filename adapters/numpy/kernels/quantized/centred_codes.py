"""From floats to centred codes: this backend's own Quantize and DynamicQuantize."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from octavo.adapters.numpy.graph import Array
from octavo.adapters.numpy.kernels.elementwise import empty_like
from octavo.adapters.numpy.kernels.parallel import spread
from octavo.adapters.numpy.kernels.registry import Build, Kernel, compiled
from octavo.adapters.numpy.kernels.spatial.geometry import channels_last

_CHUNK = 1 << 14  # elements of one piece of an element-wise pass
_CHUNKS = 16  # pieces that a thread takes at a time
_TINY = np.finfo(np.float32).tiny


def _quantize_rows(
    x: Array, y: Array, scale: Any, low: Any, high: Any, threads: int
) -> None:
    """Y = clip(round(x / scale), low, high), in pieces that stay in the cache.

    Scale and bounds are those of the array, or one for each row.
    """
    rows = x.shape[0]
    step = max(1, _CHUNK // max(1, x.shape[1]))
    share = _CHUNKS * step
    by_row = np.ndim(scale) > 0

    def work(i: int) -> None:
        first = i * share
        end = min(first + share, rows)
        for start in range(first, end, step):
            part = slice(start, min(start + step, rows))
            if by_row:
                its_scale, bottom, top = scale[part], low[part], high[part]
            else:
                its_scale, bottom, top = scale, low, high
            piece = np.divide(x[part], its_scale, out=y[part])
            np.rint(piece, out=piece)
            np.clip(piece, bottom, top, out=piece)

    shares = -(-rows // share)  # rounded up
    spread(shares, work, threads)


def _flat(x: Array) -> Array:
    """View as a matrix in memory order: any rows will do where one scale is used."""
    if x.flags.c_contiguous:
        return x.reshape(-1, x.shape[-1]) if x.ndim > 1 else x.reshape(1, -1)
    last = channels_last(x) if x.ndim > 2 else x
    return last.reshape(-1, last.shape[-1])


def _settled(x: Array, rows: bool = False) -> Array:
    """Return float32 that :func:`_flat` can view as a matrix (with ``rows``, row by row).

    As it lies, or copied in order. A reshape of any other layout would be a copy, and codes written
    into that would be lost.
    """
    x = np.asarray(x, np.float32)
    if x.flags.c_contiguous:
        return x
    if not rows and x.ndim > 2 and channels_last(x).flags.c_contiguous:
        return x
    return np.ascontiguousarray(x)


@compiled("octavo.Quantize", empty=True)
def quantize(build: Build) -> Kernel:
    """Static: (x, scale, zero point) -> centred codes.

    These are clip(round(x / scale), low - zero_point, high - zero_point).
    """
    low = build.get("low", 0)
    high = build.get("high", 255)

    def run(x: Array, scale: Array, zero_point: Array, *, empty: Any) -> Array:
        x = _settled(x)
        y = empty_like(empty, x.shape, np.float32, x)
        zero = int(zero_point)
        bottom = np.float32(low - zero)
        top = np.float32(high - zero)
        _quantize_rows(_flat(x), _flat(y), scale, bottom, top, build.threads)
        return y

    return run


@dataclass(frozen=True, slots=True)
class _Format:
    """Centred codes whose scale is found at run time.

    Attributes:
        low: Smallest code.
        high: Largest code.
        symmetric: The zero point is the middle.
        by_row: Each row has a scale of its own.
    """

    low: int
    high: int
    symmetric: bool
    by_row: bool

    def parameters(self, x: Array) -> tuple[Any, Any]:
        """Return scale and zero point of the range of x, zero included."""
        axis = -1 if self.by_row else None
        low = self.low
        high = self.high
        least = np.minimum(x.min(axis=axis, keepdims=self.by_row), np.float32(0))
        most = np.maximum(x.max(axis=axis, keepdims=self.by_row), np.float32(0))
        if self.symmetric:
            middle = 0 if low < 0 else (low + high + 1) // 2
            largest = np.maximum(-least, most)
            scale = _nonzero(largest / np.float32(high - middle))
            return scale, np.full_like(scale, middle)
        scale = _nonzero((most - least) / np.float32(high - low))
        zero = np.rint(np.float32(low) - least / scale)
        return scale, np.clip(zero, low, high)


def _nonzero(scale: Any) -> Any:
    """Return a scale that can be divided by: for a range of nothing any will do."""
    return np.where(scale < _TINY, np.float32(1), scale)


@compiled("octavo.DynamicQuantize", empty=True)
def dynamic_quantize(build: Build) -> Kernel:
    """X -> (centred codes, scale): the range is the array's own.

    With granularity ``token`` it is each row's. Source: the ONNX operator DynamicQuantizeLinear,
    with either symmetry and any integer range.
    """
    low = build.get("low", 0)
    high = build.get("high", 255)
    is_symmetric = bool(build.get("symmetric", 0))
    by_row = build.get("granularity", "tensor") == "token"
    form = _Format(low, high, is_symmetric, by_row)

    def run(x: Array, *, empty: Any) -> tuple[Array, Array]:
        x = _settled(x, by_row)
        scale, zero = form.parameters(x)
        bottom = np.float32(low) - zero
        top = np.float32(high) - zero
        y = empty_like(empty, x.shape, np.float32, x)
        if by_row:
            rows = x.reshape(-1, x.shape[-1])
            codes = y.reshape(rows.shape)
            scales = scale.reshape(-1, 1)
            bottoms = bottom.reshape(-1, 1)
            tops = top.reshape(-1, 1)
            _quantize_rows(rows, codes, scales, bottoms, tops, build.threads)
        else:
            _quantize_rows(_flat(x), _flat(y), scale, bottom, top, build.threads)
        return y, scale

    return run
