"""ONNX's own quantized operators, and the element-wise ones of ONNX Runtime's contributed domain.

Integer products are exact (see :mod:`.integer`). Rescaling to the output's scale is done in float32, round to nearest
even, as ONNX Runtime's kernels do it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from octavo.adapters.numpy.kernels.casting import convert, dtype_of, integer_range_of
from octavo.adapters.numpy.kernels.elementwise import leaky_relu, sigmoid
from octavo.adapters.numpy.kernels.normalization import stable_softmax
from octavo.adapters.numpy.kernels.registry import Build, Kernel, compiled, operator
from octavo.adapters.numpy.kernels.spatial.convolution import Geometry, Run, convolve, panel_of

from .integer import integer_matmul


def _along(values: np.ndarray, shape: tuple[int, ...], axis: int, block: int) -> np.ndarray:
    """Broadcast scales or zero points against an array: per tensor, per axis, or per block along an axis."""
    if values.size == 1 and not block:
        return values.reshape(())
    axis %= len(shape)
    if block:
        return np.repeat(values, block, axis=axis)[(slice(None),) * axis + (slice(0, shape[axis]),)]
    return values.reshape([-1 if i == axis else 1 for i in range(len(shape))])


@operator("QuantizeLinear")
def quantize_linear(
    x: np.ndarray, scale: np.ndarray, zero_point: np.ndarray | None = None,
    *, axis: int = 1, saturate: int = 1, block_size: int = 0, output_dtype: str | int = 0, precision: str | int = 0,
) -> Any:  # fmt: skip
    """clip(round(x / scale) + zero_point) to integers, or x / scale rounded to a narrow float."""
    if zero_point is not None:
        dtype = zero_point.dtype
    else:
        dtype = dtype_of(output_dtype) if isinstance(output_dtype, str) else np.dtype(np.uint8)
    wide = dtype_of(precision) if isinstance(precision, str) else np.dtype(np.float32)
    y = x.astype(wide) / _along(scale, x.shape, axis, block_size).astype(wide)
    span = integer_range_of(dtype)
    if span is None:
        return convert(y, dtype, bool(saturate))
    y = np.rint(y)
    if zero_point is not None:
        y += _along(zero_point, x.shape, axis, block_size).astype(wide)
    return np.clip(y, *span).astype(np.int32).astype(dtype)


@operator("DequantizeLinear")
def dequantize_linear(
    x: np.ndarray,
    scale: np.ndarray,
    zero_point: np.ndarray | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: str | int = 0,
) -> Any:
    """(x - zero_point) scale, in the scale's type."""
    y = x.astype(np.float32)
    if zero_point is not None and integer_range_of(x.dtype) is not None:
        y = y - _along(zero_point, x.shape, axis, block_size).astype(np.float32)
    y = y * _along(scale, x.shape, axis, block_size).astype(np.float32)
    return convert(y, dtype_of(output_dtype) if isinstance(output_dtype, str) else scale.dtype)


@operator("DynamicQuantizeLinear")
def dynamic_quantize_linear(x: np.ndarray) -> Any:
    """Quantize to uint8 on the array's own range, zero included: codes, scale, zero point."""
    least, most = min(np.float32(0), x.min()), max(np.float32(0), x.max())
    scale = np.float32((most - least) / np.float32(255))
    divisor = scale if scale else np.float32(1)
    zero = np.uint8(np.clip(np.rint(np.float32(0) - least / divisor), 0, 255))
    y = np.clip(np.rint(x / divisor) + np.float32(zero), 0, 255).astype(np.uint8)
    return y, np.asarray(scale), np.asarray(zero)


def _centred(codes: np.ndarray, zero_point: np.ndarray | None, axis: int) -> np.ndarray:
    """Return codes - zero_point as float32; a vector of zero points lies along ``axis``."""
    y = codes.astype(np.float32)
    if zero_point is None:
        return y
    zero = zero_point.astype(np.float32)
    if zero.size > 1 and zero.ndim == 1:
        zero = zero.reshape([-1 if i == axis % codes.ndim else 1 for i in range(codes.ndim)])
    return y - (zero if zero.size > 1 else zero.reshape(()))


def _requantized(acc: np.ndarray, factor: Any, zero_point: np.ndarray) -> np.ndarray:
    """Return clip(round(acc factor) + zero_point) in the zero point's type; ``acc`` holds whole numbers."""
    y = acc.astype(np.float32)
    y *= np.asarray(factor, np.float32)
    np.rint(y, out=y)
    zero = np.float32(zero_point.reshape(()))
    low, high = integer_range_of(zero_point.dtype) or (0, 255)
    np.clip(y, low - zero, high - zero, out=y)
    y += zero
    return y.astype(zero_point.dtype)


@operator("MatMulInteger")
def matmul_integer(
    a: np.ndarray, b: np.ndarray, a_zero: np.ndarray | None = None, b_zero: np.ndarray | None = None
) -> Any:
    """(a - a_zero) @ (b - b_zero), int32."""
    product = integer_matmul(_centred(a, a_zero, -2), _centred(b, b_zero, -1))
    return product.astype(np.int64).astype(np.int32)


@operator("QLinearMatMul")
def qlinear_matmul(
    a: np.ndarray,
    a_scale: np.ndarray,
    a_zero: np.ndarray,
    b: np.ndarray,
    b_scale: np.ndarray,
    b_zero: np.ndarray,
    y_scale: np.ndarray,
    y_zero: np.ndarray,
) -> Any:
    """The product of two quantized matrices, quantized."""
    product = integer_matmul(_centred(a, a_zero, -2), _centred(b, b_zero, -1))
    rows = (
        a_scale.astype(np.float32).reshape(-1, 1)
        if a_scale.size > 1
        else a_scale.astype(np.float32).reshape(())
    )
    columns = (
        b_scale.astype(np.float32) if b_scale.size > 1 else b_scale.astype(np.float32).reshape(())
    )
    return _requantized(product, rows * columns / y_scale.astype(np.float32), y_zero)


def _integer_convolution(build: Build) -> Callable[..., np.ndarray]:
    groups = build.get("group", 1)

    def run(
        x: np.ndarray, w: np.ndarray, x_zero: np.ndarray | None, w_zero: np.ndarray | None
    ) -> np.ndarray:
        weight = panel_of(_centred(w, w_zero, 0), groups)
        centred = _centred(x, x_zero, 0)
        geometry = Geometry.read(build, w.shape[2:])

        def product(rows: np.ndarray, out: np.ndarray) -> None:
            out[...] = integer_matmul(rows, weight)

        # float64 holds the sums of several blocks, which float32 may not.
        how = Run(lambda y: None, build.scratch, build.threads, dtype=np.float64)
        return convolve(centred, geometry, w.shape[0], groups, product, how)

    return run


@compiled("ConvInteger")
def conv_integer(build: Build) -> Kernel:
    """Integer convolution, int32."""
    run = _integer_convolution(build)

    def kernel(
        x: np.ndarray,
        w: np.ndarray,
        x_zero: np.ndarray | None = None,
        w_zero: np.ndarray | None = None,
    ) -> np.ndarray:
        return run(x, w, x_zero, w_zero).astype(np.int64).astype(np.int32)

    return kernel


@compiled("QLinearConv")
def qlinear_conv(build: Build) -> Kernel:
    """Integer convolution, int32 bias, quantized."""
    run = _integer_convolution(build)

    def kernel(
        x: Any,
        x_scale: Any,
        x_zero: Any,
        w: Any,
        w_scale: Any,
        w_zero: Any,
        y_scale: Any,
        y_zero: Any,
        bias: Any = None,
    ) -> np.ndarray:
        acc = run(x, w, x_zero, w_zero)
        spatial = (1,) * (x.ndim - 2)
        if bias is not None:
            acc += bias.astype(np.float64).reshape(-1, *spatial)
        per_channel = (
            w_scale.astype(np.float32).reshape(-1, *spatial)
            if w_scale.size > 1
            else w_scale.astype(np.float32).reshape(())
        )
        return _requantized(
            acc, x_scale.astype(np.float32) * per_channel / y_scale.astype(np.float32), y_zero
        )

    return kernel


def _real(x: np.ndarray, scale: np.ndarray, zero: np.ndarray | None) -> np.ndarray:
    return np.asarray(dequantize_linear(x, scale, zero), np.float32)


def _qlinear_binary(function: Any) -> Callable[..., Any]:
    def run(
        a: Any,
        a_scale: Any,
        a_zero: Any,
        b: Any,
        b_scale: Any,
        b_zero: Any,
        y_scale: Any,
        y_zero: Any = None,
    ) -> Any:
        y_zero = np.zeros((), a.dtype) if y_zero is None else y_zero
        return quantize_linear(
            function(_real(a, a_scale, a_zero), _real(b, b_scale, b_zero)), y_scale, y_zero
        )

    return run


def _qlinear_unary(function: Any) -> Callable[..., Any]:
    def run(
        x: Any, x_scale: Any, x_zero: Any, y_scale: Any, y_zero: Any = None, **attributes: Any
    ) -> Any:
        y_zero = np.zeros((), x.dtype) if y_zero is None else y_zero
        return quantize_linear(function(_real(x, x_scale, x_zero), **attributes), y_scale, y_zero)

    return run


operator("com.microsoft.QLinearAdd")(_qlinear_binary(np.add))
operator("com.microsoft.QLinearMul")(_qlinear_binary(np.multiply))
operator("com.microsoft.QLinearSigmoid")(_qlinear_unary(sigmoid))
operator("com.microsoft.QLinearLeakyRelu")(_qlinear_unary(leaky_relu))


@operator("com.microsoft.QLinearSoftmax")
def qlinear_softmax(
    x: Any, x_scale: Any, x_zero: Any, y_scale: Any, y_zero: Any, *, axis: int = -1, opset: int = 13
) -> Any:
    """Softmax of a quantized array, quantized."""
    return quantize_linear(stable_softmax(_real(x, x_scale, x_zero), axis), y_scale, y_zero)


@operator("com.microsoft.QLinearGlobalAveragePool")
def qlinear_global_average_pool(
    x: Any, x_scale: Any, x_zero: Any, y_scale: Any, y_zero: Any, *, channels_last: int = 0
) -> Any:
    """Mean over the spatial axes of a quantized array, quantized."""
    axes = tuple(range(1, x.ndim - 1)) if channels_last else tuple(range(2, x.ndim))
    return quantize_linear(
        _real(x, x_scale, x_zero).mean(axis=axes, keepdims=True), y_scale, y_zero
    )


@operator("com.microsoft.QLinearConcat")
def qlinear_concat(y_scale: Any, y_zero: Any, *parts: Any, axis: int) -> Any:
    """Join quantized arrays of different scales, quantized to one."""
    real = [_real(parts[i], parts[i + 1], parts[i + 2]) for i in range(0, len(parts), 3)]
    return quantize_linear(np.concatenate(real, axis=axis), y_scale, y_zero)
