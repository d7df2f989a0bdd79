"""ONNX's own quantized operators, and the element-wise ones of ONNX Runtime's contributed domain.

Integer products are exact (see :mod:`.integer`). Rescaling to the output's scale is done in
float32, round to nearest even, as ONNX Runtime's kernels do it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from octavo.adapters.numpy.graph import Array
from octavo.adapters.numpy.kernels.activations import leaky_relu, sigmoid
from octavo.adapters.numpy.kernels.axes import along
from octavo.adapters.numpy.kernels.casting import convert, dtype_of, integer_range_of
from octavo.adapters.numpy.kernels.registry import Build, Kernel, compiled, operator
from octavo.adapters.numpy.kernels.softmax import stable_softmax
from octavo.adapters.numpy.kernels.spatial.convolution import Run, convolve, panel_of
from octavo.adapters.numpy.kernels.spatial.geometry import Geometry

from .integer import integer_matmul


def _broadcast(values: Array, shape: tuple[int, ...], axis: int, block: int) -> Array:
    """Make scales or zero points broadcast against an array of a shape.

    They are per tensor, per axis, or (with ``block``) per block along an axis.
    """
    if block:
        axis %= len(shape)
        repeated = np.repeat(values, block, axis=axis)
        # The last block may be cut short.
        return repeated[(slice(None),) * axis + (slice(0, shape[axis]),)]
    if values.size == 1:
        return values.reshape(())
    return along(values, axis, len(shape))


@operator("QuantizeLinear")
def quantize_linear(
    x: Array,
    scale: Array,
    zero_point: Array | None = None,
    *,
    axis: int = 1,
    saturate: int = 1,
    block_size: int = 0,
    output_dtype: str | int = 0,
    precision: str | int = 0,
) -> Any:
    """ONNX QuantizeLinear: clip(round(x / scale) + zero_point) to integers.

    For a narrow float, x / scale rounded to it.
    """
    if zero_point is not None:
        dtype = zero_point.dtype
    elif isinstance(output_dtype, str):
        dtype = dtype_of(output_dtype)
    else:
        dtype = np.dtype(np.uint8)
    wide = dtype_of(precision) if isinstance(precision, str) else np.dtype(np.float32)
    y = x.astype(wide) / _broadcast(scale, x.shape, axis, block_size).astype(wide)
    span = integer_range_of(dtype)
    if span is None:
        return convert(y, dtype, bool(saturate))
    y = np.rint(y)
    if zero_point is not None:
        y += _broadcast(zero_point, x.shape, axis, block_size).astype(wide)
    return np.clip(y, *span).astype(np.int32).astype(dtype)


@operator("DequantizeLinear")
def dequantize_linear(
    x: Array,
    scale: Array,
    zero_point: Array | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: str | int = 0,
) -> Any:
    """ONNX DequantizeLinear: (x - zero_point) scale, in the scale's type."""
    y = x.astype(np.float32)
    if zero_point is not None and integer_range_of(x.dtype) is not None:
        y = y - _broadcast(zero_point, x.shape, axis, block_size).astype(np.float32)
    y = y * _broadcast(scale, x.shape, axis, block_size).astype(np.float32)
    return convert(
        y, dtype_of(output_dtype) if isinstance(output_dtype, str) else scale.dtype
    )


@operator("DynamicQuantizeLinear")
def dynamic_quantize_linear(x: Array) -> Any:
    """ONNX DynamicQuantizeLinear: to uint8 on the array's own range, zero included.

    Returns:
        Codes, scale, zero point.
    """
    none = np.float32(0)
    least, most = min(none, x.min()), max(none, x.max())
    scale = np.float32((most - least) / np.float32(255))
    divisor = scale if scale else np.float32(1)
    zero = np.uint8(np.clip(np.rint(none - least / divisor), 0, 255))
    codes = np.clip(np.rint(x / divisor) + np.float32(zero), 0, 255).astype(np.uint8)
    return codes, np.asarray(scale), np.asarray(zero)


def _centred(codes: Array, zero_point: Array | None, axis: int) -> Array:
    """Return codes - zero_point as float32; a vector of zero points lies along ``axis``."""
    y = codes.astype(np.float32)
    if zero_point is None:
        return y
    zero = zero_point.astype(np.float32)
    if zero.size == 1:
        return y - zero.reshape(())
    return y - (along(zero, axis, codes.ndim) if zero.ndim == 1 else zero)


def _single(scale: Array) -> Array:
    """Return a scale as float32; one of one element as a number."""
    wide = scale.astype(np.float32)
    return wide if wide.size > 1 else wide.reshape(())


def _requantized(acc: Array, factor: Any, zero_point: Array) -> Array:
    """Return clip(round(acc factor) + zero_point) in the zero point's type.

    ``acc`` holds whole numbers.
    """
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
    a: Array, b: Array, a_zero: Array | None = None, b_zero: Array | None = None
) -> Any:
    """ONNX MatMulInteger: (a - a_zero) @ (b - b_zero), int32."""
    product = integer_matmul(_centred(a, a_zero, -2), _centred(b, b_zero, -1))
    # By int64: a float beyond int32 has no defined conversion to it, an integer wraps around.
    return product.astype(np.int64).astype(np.int32)


@operator("QLinearMatMul")
def qlinear_matmul(
    a: Array,
    a_scale: Array,
    a_zero: Array,
    b: Array,
    b_scale: Array,
    b_zero: Array,
    y_scale: Array,
    y_zero: Array,
) -> Any:
    """ONNX QLinearMatMul: the product of two quantized matrices, quantized."""
    product = integer_matmul(_centred(a, a_zero, -2), _centred(b, b_zero, -1))
    rows, columns = _single(a_scale), _single(b_scale)
    if rows.ndim:
        rows = rows.reshape(-1, 1)
    return _requantized(product, rows * columns / y_scale.astype(np.float32), y_zero)


def _integer_convolution(build: Build) -> Callable[..., Array]:
    """Return (x, w, x_zero, w_zero) -> exact sums, float64."""
    groups = build.get("group", 1)

    def run(x: Array, w: Array, x_zero: Array | None, w_zero: Array | None) -> Array:
        weight = panel_of(_centred(w, w_zero, 0), groups)
        centred = _centred(x, x_zero, 0)
        geometry = Geometry.read(build, w.shape[2:])

        def product(rows: Array, out: Array) -> None:
            out[...] = integer_matmul(rows, weight)

        # float64 holds the sums of several blocks, which float32 may not.
        how = Run(lambda y: None, build.scratch, build.threads, dtype=np.float64)
        return convolve(centred, geometry, w.shape[0], groups, product, how)

    return run


@compiled("ConvInteger")
def conv_integer(build: Build) -> Kernel:
    """ONNX ConvInteger: integer convolution, int32."""
    run = _integer_convolution(build)

    def kernel(
        x: Array, w: Array, x_zero: Array | None = None, w_zero: Array | None = None
    ) -> Array:
        return run(x, w, x_zero, w_zero).astype(np.int64).astype(np.int32)

    return kernel


@compiled("QLinearConv")
def qlinear_conv(build: Build) -> Kernel:
    """ONNX QLinearConv: integer convolution, int32 bias, quantized."""
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
    ) -> Array:
        acc = run(x, w, x_zero, w_zero)
        if bias is not None:
            acc += along(bias.astype(np.float64), 1, x.ndim)
        per_channel = _single(w_scale)
        if per_channel.ndim:
            per_channel = along(per_channel, 1, x.ndim)
        factor = x_scale.astype(np.float32) * per_channel / y_scale.astype(np.float32)
        return _requantized(acc, factor, y_zero)

    return kernel


def _real(x: Array, scale: Array, zero: Array | None) -> Array:
    return np.asarray(dequantize_linear(x, scale, zero), np.float32)


def _requantize(y: Any, scale: Any, zero: Any, like: Array) -> Any:
    """Quantize to a scale; without a zero point, to the type of ``like`` with 0."""
    return quantize_linear(y, scale, np.zeros((), like.dtype) if zero is None else zero)


def _qlinear_binary(function: Any) -> Callable[..., Any]:
    """Return the quantized form of a function of two arrays: it is computed in float."""

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
        y = function(_real(a, a_scale, a_zero), _real(b, b_scale, b_zero))
        return _requantize(y, y_scale, y_zero, a)

    return run


def _qlinear_unary(function: Any) -> Callable[..., Any]:
    """Return the quantized form of a function of one array: it is computed in float."""

    def run(
        x: Any,
        x_scale: Any,
        x_zero: Any,
        y_scale: Any,
        y_zero: Any = None,
        **attributes: Any,
    ) -> Any:
        y = function(_real(x, x_scale, x_zero), **attributes)
        return _requantize(y, y_scale, y_zero, x)

    return run


operator("com.microsoft.QLinearAdd")(_qlinear_binary(np.add))
operator("com.microsoft.QLinearMul")(_qlinear_binary(np.multiply))
operator("com.microsoft.QLinearSigmoid")(_qlinear_unary(sigmoid))
operator("com.microsoft.QLinearLeakyRelu")(_qlinear_unary(leaky_relu))


@operator("com.microsoft.QLinearSoftmax")
def qlinear_softmax(
    x: Any,
    x_scale: Any,
    x_zero: Any,
    y_scale: Any,
    y_zero: Any,
    *,
    axis: int = -1,
    opset: int = 13,
) -> Any:
    """com.microsoft QLinearSoftmax: softmax of a quantized array, quantized."""
    return quantize_linear(
        stable_softmax(_real(x, x_scale, x_zero), axis), y_scale, y_zero
    )


@operator("com.microsoft.QLinearGlobalAveragePool")
def qlinear_global_average_pool(
    x: Any,
    x_scale: Any,
    x_zero: Any,
    y_scale: Any,
    y_zero: Any,
    *,
    channels_last: int = 0,
) -> Any:
    """com.microsoft QLinearGlobalAveragePool: mean over the spatial axes, quantized."""
    axes = tuple(range(1, x.ndim - 1)) if channels_last else tuple(range(2, x.ndim))
    means = _real(x, x_scale, x_zero).mean(axis=axes, keepdims=True)
    return quantize_linear(means, y_scale, y_zero)


@operator("com.microsoft.QLinearConcat")
def qlinear_concat(y_scale: Any, y_zero: Any, *parts: Any, axis: int) -> Any:
    """com.microsoft QLinearConcat: arrays of different scales joined, quantized to one."""
    real = [_real(*parts[i : i + 3]) for i in range(0, len(parts), 3)]
    return quantize_linear(np.concatenate(real, axis=axis), y_scale, y_zero)
