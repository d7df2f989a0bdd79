"""This backend's own quantized operators: what a recipe turns linear and convolution layers into.

Between them travel *centred* codes: q - zero_point, whole numbers of at most nine bits held as float32, so that BLAS can
multiply them (see :mod:`.integer`) and padding is zero. Names begin with ``octavo.``; a saved model and the standalone
runner know no others.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from octavo.adapters.numpy.kernels.elementwise import empty_like
from octavo.adapters.numpy.kernels.identity import IdentityCache
from octavo.adapters.numpy.kernels.linear import activate, product_pieces
from octavo.adapters.numpy.kernels.parallel import spread
from octavo.adapters.numpy.kernels.registry import Build, Kernel, compiled
from octavo.adapters.numpy.kernels.spatial.convolution import (
    Geometry,
    Run,
    channels_last,
    convolve,
    depthwise,
)

from .integer import carrier, exact_blocks, integer_product

_CHUNK = 1 << 14  # elements of one piece of an element-wise pass
_TINY = np.finfo(np.float32).tiny


def _quantize_rows(
    x: np.ndarray, y: np.ndarray, scale: Any, low: Any, high: Any, threads: int
) -> None:
    """Y = clip(round(x / scale), low, high), in pieces that stay in the cache; scale and bounds per array or per row."""
    rows, step = x.shape[0], max(1, _CHUNK // max(1, x.shape[1]))
    by_row = np.ndim(scale) > 0

    def work(i: int) -> None:
        for start in range(i * 16 * step, min((i + 1) * 16 * step, rows), step):
            part = slice(start, min(start + step, rows))
            s, a, b = (scale[part], low[part], high[part]) if by_row else (scale, low, high)
            piece = np.divide(x[part], s, out=y[part])
            np.rint(piece, out=piece)
            np.clip(piece, a, b, out=piece)

    spread(-(-rows // (16 * step)) if rows else 0, work, threads)


def _flat(x: np.ndarray) -> np.ndarray:
    """View as a matrix in memory order: any rows will do where one scale is used."""
    if x.flags.c_contiguous:
        return x.reshape(-1, x.shape[-1]) if x.ndim > 1 else x.reshape(1, -1)
    last = channels_last(x) if x.ndim > 2 else x
    return last.reshape(-1, last.shape[-1])


def _settled(x: np.ndarray, rows: bool = False) -> np.ndarray:
    """Return float32 that :func:`_flat` can view as a matrix (with ``rows``, row by row): as it lies, or copied in order.

    A reshape of any other layout would be a copy, and codes written into that would be lost.
    """
    x = np.asarray(x, np.float32)
    if x.flags.c_contiguous or (not rows and x.ndim > 2 and channels_last(x).flags.c_contiguous):
        return x
    return np.ascontiguousarray(x)


@compiled("octavo.Quantize", empty=True)
def quantize(build: Build) -> Kernel:
    """Static: (x, scale, zero point) -> centred codes clip(round(x / scale), low - zero_point, high - zero_point)."""
    low, high = build.get("low", 0), build.get("high", 255)

    def run(x: np.ndarray, scale: np.ndarray, zero_point: np.ndarray, *, empty: Any) -> np.ndarray:
        x = _settled(x)
        y = empty_like(empty, x.shape, np.float32, x)
        zero = int(zero_point)
        _quantize_rows(
            _flat(x),
            _flat(y),
            scale,
            np.float32(low - zero),
            np.float32(high - zero),
            build.threads,
        )
        return y

    return run


@compiled("octavo.DynamicQuantize", empty=True)
def dynamic_quantize(build: Build) -> Kernel:
    """X -> (centred codes, scale): the range is the array's own, or each row's with granularity ``token``.

    Source: the ONNX operator DynamicQuantizeLinear, with either symmetry and any integer range.
    """
    low, high = build.get("low", 0), build.get("high", 255)
    symmetric = bool(build.get("symmetric", 0))
    rows = build.get("granularity", "tensor") == "token"
    middle = 0 if low < 0 else (low + high + 1) // 2

    def run(x: np.ndarray, *, empty: Any) -> tuple[np.ndarray, np.ndarray]:
        x = _settled(x, rows)
        axis = -1 if rows else None
        least = np.minimum(x.min(axis=axis, keepdims=rows), np.float32(0))
        most = np.maximum(x.max(axis=axis, keepdims=rows), np.float32(0))
        scale = (
            np.maximum(-least, most) / np.float32(high - middle)
            if symmetric
            else (most - least) / np.float32(high - low)
        )
        scale = np.where(scale < _TINY, np.float32(1), scale)
        zero = (
            np.full_like(scale, middle)
            if symmetric
            else np.clip(np.rint(np.float32(low) - least / scale), low, high)
        )
        y = empty_like(empty, x.shape, np.float32, x)
        bottom, top = np.float32(low) - zero, np.float32(high) - zero
        if rows:
            flat = x.reshape(-1, x.shape[-1])
            s, a, b = (v.reshape(-1, 1) for v in (scale, bottom, top))
            _quantize_rows(flat, y.reshape(flat.shape), s, a, b, build.threads)
        else:
            _quantize_rows(_flat(x), _flat(y), scale, bottom, top, build.threads)
        return y, scale

    return run


class _Epilogue:
    """acc -> acc * scale + bias, activation; or, with an output scale, on to centred codes."""

    def __init__(self, build: Build, first: int) -> None:
        self._activation = build.get("activation", "")
        self._requantize = len(build.node.inputs) > first and bool(build.node.inputs[first])
        low, high = build.get("low", 0), build.get("high", 0)
        self._low, self._high = (
            np.float32(max(low, 0) if self._activation == "Relu" else low),
            np.float32(high),
        )
        # A ReLU is a higher lower bound, and scales commute with it; other activations come before the output's scale.
        self.early = self._activation in ("", "Relu")

    def __call__(
        self,
        y: np.ndarray,
        scale: np.ndarray,
        bias: np.ndarray | None,
        y_scale: np.ndarray | None = None,
    ) -> None:
        y *= scale
        if bias is not None:
            y += bias
        if self._requantize:
            if not self.early:
                activate(y, self._activation)
                y /= y_scale
            np.rint(y, out=y)
            np.clip(y, self._low, self._high, out=y)
        else:
            activate(y, self._activation)


def _factors(
    x_scale: Any, w_scale: np.ndarray, bias: Any, y_scale: Any, early: bool
) -> tuple[np.ndarray, Any]:
    scale = x_scale * w_scale
    if y_scale is None or not early:
        return scale, bias
    return scale / y_scale, None if bias is None else bias / y_scale


def _integers(codes: np.ndarray, zero_point: np.ndarray | None, axis: int) -> np.ndarray:
    """Return codes - zero_point as float32; the zero point is per tensor or along ``axis``."""
    panel = codes.astype(np.float32)
    if zero_point is not None:
        panel -= zero_point.astype(np.float32).reshape(
            [-1 if i == axis % codes.ndim else 1 for i in range(codes.ndim)]
        )
    return panel


_blocks = IdentityCache()


@compiled("octavo.QuantizedGemm", empty=True)
def quantized_gemm(build: Build) -> Kernel:
    """Integer product of centred codes and a weight of codes (K, N), or (N, K) with ``transB``.

    Inputs: x, x_scale, weight, w_scale, w_zero_point, bias, y_scale. ``largest`` bounds |x|.
    """
    transposed = build.get("transB", 0)
    codes, zero_point = build.constant(2), build.constant(4)
    assert codes is not None
    largest = build.get("largest", 255)

    def panel(kind: Any = np.float32) -> np.ndarray:
        integers = _integers(codes, zero_point, 0 if transposed else 1).astype(kind, copy=False)
        return integers.T if transposed else integers

    blocks = _blocks.get(codes, (transposed, largest), lambda: exact_blocks(panel(), largest))
    kind = carrier(codes.shape[1 if transposed else 0], blocks)
    epilogue = _Epilogue(build, 6)

    def run(
        x: Any,
        x_scale: Any,
        w: Any,
        w_scale: Any,
        w_zero: Any = None,
        bias: Any = None,
        y_scale: Any = None,
        *,
        empty: Any,
    ) -> np.ndarray:
        weight = panel(kind)
        per_row = x_scale.ndim > 0
        scale, shift = _factors(
            np.float32(1) if per_row else x_scale, w_scale, bias, y_scale, epilogue.early
        )
        rows_scale = x_scale.reshape(-1, 1) if per_row else None
        out: np.ndarray = empty((*x.shape[:-1], weight.shape[1]), np.float32)

        def finish(y: np.ndarray, columns: slice) -> None:
            epilogue(
                y,
                scale[columns] if scale.ndim else scale,
                None if shift is None else shift[columns],
                y_scale,
            )

        def finish_rows(y: np.ndarray, columns: slice) -> None:
            y *= rows_scale
            finish(y, columns)

        flat = out.reshape(-1, weight.shape[1])
        # Scales per row belong to whole rows: one thread at a time then, over all of them.
        threads = 1 if per_row else build.threads
        product_pieces(
            x.reshape(-1, x.shape[-1]),
            weight,
            flat,
            threads,
            lambda a, b, o: integer_product(a, b, blocks, o),
            finish_rows if per_row else finish,
        )
        return out

    return run


@compiled("octavo.QuantizedConv", empty=True)
def quantized_conv(build: Build) -> Kernel:
    """Integer convolution of centred codes and a weight of codes, laid out (kernel..., C / g, O).

    Inputs: x, x_scale, weight, w_scale, w_zero_point, bias, y_scale. ``largest`` bounds |x|.
    """
    groups = build.get("group", 1)
    codes, zero_point = build.constant(2), build.constant(4)
    assert codes is not None
    kernel, per_group, channels = codes.shape[:-2], codes.shape[-2], codes.shape[-1]
    geometry = Geometry.read(build, kernel)
    largest = build.get("largest", 255)

    def panel(kind: Any = np.float32) -> np.ndarray:
        integers = _integers(codes, zero_point, -1).astype(kind, copy=False)
        if groups == 1:
            return integers.reshape(-1, channels)
        split = integers.reshape(-1, per_group, groups, channels // groups).transpose(2, 0, 1, 3)
        return np.ascontiguousarray(split.reshape(groups, -1, channels // groups))

    blocks = _blocks.get(codes, (groups, largest), lambda: exact_blocks(panel(), largest))
    kind = carrier(math.prod(kernel) * per_group, blocks)
    epilogue = _Epilogue(build, 6)
    single = per_group == 1 and groups == channels and len(blocks) == 2

    def run(
        x: Any,
        x_scale: Any,
        w: Any,
        w_scale: Any,
        w_zero: Any = None,
        bias: Any = None,
        y_scale: Any = None,
        *,
        empty: Any,
    ) -> np.ndarray:
        scale, shift = _factors(x_scale, w_scale, bias, y_scale, epilogue.early)
        how = Run(lambda y: epilogue(y, scale, shift, y_scale), build.scratch, build.threads, empty)
        if single:
            return depthwise(x, _integers(codes, zero_point, -1)[..., 0, :], geometry, how)
        weight = panel(kind)
        return convolve(
            x,
            geometry,
            channels,
            groups,
            lambda rows, out: integer_product(rows, weight, blocks, out),
            how,
        )

    return run
