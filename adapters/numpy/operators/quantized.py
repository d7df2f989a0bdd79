"""This backend's own quantized operators: what a recipe turns linear and convolution layers into.

Between them travel *centred* codes: q - zero_point, whole numbers of at most nine bits held as float32, so that BLAS can
multiply them (see :mod:`.integer`) and padding is zero. Names begin with ``octavo.``; a saved model and the standalone
runner know no others.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .convolution import Geometry, convolve, depthwise
from .integer import exact_blocks, integer_product
from .linear import activate
from .registry import Build, Kernel, compiled

_TINY = np.finfo(np.float32).tiny


@compiled("octavo.Quantize")
def quantize(build: Build) -> Kernel:
    """Static: (x, scale, zero point) -> centred codes clip(round(x / scale), low - zero_point, high - zero_point)."""
    low, high = build.get("low", 0), build.get("high", 255)

    def run(x: np.ndarray, scale: np.ndarray, zero_point: np.ndarray) -> np.ndarray:
        y: np.ndarray = np.divide(x, scale, dtype=np.float32)
        np.rint(y, out=y)
        np.clip(y, np.float32(low - int(zero_point)), np.float32(high - int(zero_point)), out=y)
        return y

    return run


@compiled("octavo.DynamicQuantize")
def dynamic_quantize(build: Build) -> Kernel:
    """X -> (centred codes, scale): the range is the array's own, or each row's with granularity ``token``.

    Source: the ONNX operator DynamicQuantizeLinear, with either symmetry and any integer range.
    """
    low, high = build.get("low", 0), build.get("high", 255)
    symmetric = bool(build.get("symmetric", 0))
    rows = build.get("granularity", "tensor") == "token"

    def run(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        axis = -1 if rows else None
        least = np.minimum(x.min(axis=axis, keepdims=rows), 0, dtype=np.float32)
        most = np.maximum(x.max(axis=axis, keepdims=rows), 0, dtype=np.float32)
        if symmetric:
            middle = 0 if low < 0 else (low + high + 1) // 2
            scale = np.maximum(-least, most) / np.float32(high - middle)
        else:
            scale = (most - least) / np.float32(high - low)
        scale = np.where(scale < _TINY, np.float32(1), scale)
        if symmetric:
            zero: Any = np.float32(middle)
        else:
            zero = np.clip(np.rint(np.float32(low) - least / scale), low, high)
        y: np.ndarray = np.divide(x, scale, dtype=np.float32)
        np.rint(y, out=y)
        np.clip(y, np.float32(low) - zero, np.float32(high) - zero, out=y)
        return y, scale

    return run


class _Epilogue:
    """acc -> acc * scale + bias, activation; or, with an output scale, on to centred codes."""

    def __init__(self, build: Build, first: int) -> None:
        self._activation = build.get("activation", "")
        self._requantize = len(build.node.inputs) > first and bool(build.node.inputs[first])
        low, high = build.get("low", 0), build.get("high", 0)
        self._low, self._high = np.float32(max(low, 0) if self._activation == "Relu" else low), np.float32(high)

    def __call__(self, y: np.ndarray, scale: np.ndarray, bias: np.ndarray | None) -> None:
        y *= scale
        if bias is not None:
            y += bias
        if self._requantize:
            np.rint(y, out=y)
            np.clip(y, self._low, self._high, out=y)
        else:
            activate(y, self._activation)


def _integers(codes: np.ndarray, zero_point: np.ndarray | None, axis: int) -> np.ndarray:
    """Return codes - zero_point as float32; the zero point is per tensor or along ``axis``."""
    panel = codes.astype(np.float32)
    if zero_point is not None:
        panel -= zero_point.astype(np.float32).reshape([-1 if i == axis % codes.ndim else 1 for i in range(codes.ndim)])
    return panel


def _factors(
    x_scale: np.ndarray, w_scale: np.ndarray, bias: np.ndarray | None, y_scale: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None]:
    scale = x_scale * w_scale
    if y_scale is None:
        return scale, bias
    return scale / y_scale, None if bias is None else bias / y_scale


@compiled("octavo.QuantizedGemm")
def quantized_gemm(build: Build) -> Kernel:
    """Integer product of centred codes and a weight of codes (K, N), or (N, K) with ``transB``.

    Inputs: x, x_scale, weight, w_scale, w_zero_point, bias, y_scale. ``largest`` bounds |x|.
    """
    transposed = build.get("transB", 0)
    codes, zero_point = build.constant(2), build.constant(4)
    assert codes is not None
    axis = 0 if transposed else 1

    def panel() -> np.ndarray:
        integers = _integers(codes, zero_point, axis)
        return integers.T if transposed else integers

    blocks = exact_blocks(panel(), build.get("largest", 255))
    epilogue = _Epilogue(build, 6)

    def run(
        x: np.ndarray, x_scale: np.ndarray, w: Any, w_scale: np.ndarray, w_zero_point: Any = None, bias: Any = None, y_scale: Any = None
    ) -> np.ndarray:
        weight = panel()
        flat = x.reshape(-1, x.shape[-1])
        y = integer_product(flat, weight, blocks).astype(np.float32, copy=False)
        per_row = x_scale.reshape(-1, 1) if x_scale.ndim else x_scale
        epilogue(y, *_factors(per_row, w_scale, bias, y_scale))
        return y.reshape(*x.shape[:-1], weight.shape[1])

    return run


@compiled("octavo.QuantizedConv")
def quantized_conv(build: Build) -> Kernel:
    """Integer convolution of centred codes and a weight of codes, laid out (kernel..., C / g, O).

    Inputs: x, x_scale, weight, w_scale, w_zero_point, bias, y_scale. ``largest`` bounds |x|.
    """
    groups = build.get("group", 1)
    codes, zero_point = build.constant(2), build.constant(4)
    assert codes is not None
    kernel, per_group, channels = codes.shape[:-2], codes.shape[-2], codes.shape[-1]
    geometry = Geometry.read(build, kernel)

    def panel() -> np.ndarray:
        integers = _integers(codes, zero_point, -1)
        if groups == 1:
            return integers.reshape(-1, channels)
        split = integers.reshape(-1, per_group, groups, channels // groups).transpose(2, 0, 1, 3)
        return np.ascontiguousarray(split.reshape(groups, -1, channels // groups))

    blocks = exact_blocks(panel(), build.get("largest", 255))
    epilogue = _Epilogue(build, 6)
    single = per_group == 1 and groups == channels and len(blocks) == 2

    def run(
        x: np.ndarray, x_scale: np.ndarray, w: Any, w_scale: np.ndarray, w_zero_point: Any = None, bias: Any = None, y_scale: Any = None
    ) -> np.ndarray:
        scale, shift = _factors(x_scale, w_scale, bias, y_scale)

        def finish(y: np.ndarray) -> None:
            epilogue(y, scale, shift)

        if single:
            return depthwise(x, _integers(codes, zero_point, -1)[..., 0, :], geometry, finish)
        weight = panel()
        return convolve(x, geometry, channels, groups, lambda rows, out: integer_product(rows, weight, blocks, out), finish, build.scratch)

    return run
