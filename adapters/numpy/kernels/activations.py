"""Activation functions. Source: the ONNX operator specification of each name."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from octavo.adapters.numpy.graph import Array

from .elementwise import empty_like
from .registry import operator


@operator("Relu", empty=True)
def relu(x: Array, *, empty: Any = np.empty) -> Any:
    """ONNX Relu: max(x, 0)."""
    out = empty_like(empty, x.shape, x.dtype, x)
    kind = x.dtype.type
    if x.dtype.kind != "f":
        return np.maximum(x, kind(0), out=out)
    # numpy.clip runs in vector registers; numpy.maximum with a number takes five times as long.
    return np.clip(x, kind(0), kind(np.inf), out=out)


@operator("LeakyRelu")
def leaky_relu(x: Array, *, alpha: float = 0.01) -> Any:
    """ONNX LeakyRelu: x where positive, alpha x elsewhere."""
    return np.where(x < 0, x * x.dtype.type(alpha), x)


@operator("PRelu")
def prelu(x: Array, slope: Array) -> Any:
    """ONNX PRelu: x where positive, slope x elsewhere."""
    return np.where(x < 0, x * slope, x)


@operator("ThresholdedRelu")
def thresholded_relu(x: Array, *, alpha: float = 1.0) -> Any:
    """ONNX ThresholdedRelu: x where it exceeds alpha, else 0."""
    return np.where(x > alpha, x, x.dtype.type(0))


@operator("Elu")
def elu(x: Array, *, alpha: float = 1.0) -> Any:
    """ONNX Elu: x where positive, alpha (e^x - 1) elsewhere."""
    below = np.expm1(np.minimum(x, 0))
    return np.where(x < 0, x.dtype.type(alpha) * below, x)


@operator("Celu")
def celu(x: Array, *, alpha: float = 1.0) -> Any:
    """ONNX Celu: max(0, x) + min(0, alpha (e^(x / alpha) - 1))."""
    a = x.dtype.type(alpha)
    negative = a * np.expm1(np.minimum(x, 0) / a)
    positive = np.maximum(x, 0)
    return positive + np.minimum(0, negative)


# The constants with which activations keep mean 0 and variance 1: Klambauer et al. 2017.
_SELU_ALPHA = 1.67326319217681884765625
_SELU_GAMMA = 1.05070102214813232421875


@operator("Selu")
def selu(x: Array, *, alpha: float = _SELU_ALPHA, gamma: float = _SELU_GAMMA) -> Any:
    """ONNX Selu: gamma times the exponential linear unit."""
    kind = x.dtype.type
    below = np.expm1(np.minimum(x, 0))
    unit = np.where(x > 0, x, kind(alpha) * below)
    return kind(gamma) * unit


@operator("Sigmoid")
def sigmoid(x: Array) -> Any:
    """ONNX Sigmoid: 1 / (1 + e^-x), as (1 + tanh(x / 2)) / 2, which cannot overflow."""
    wide = np.dtype(np.float32) if x.dtype.itemsize < 4 else x.dtype
    half = wide.type(0.5)
    y = np.multiply(x, half, dtype=wide)
    np.tanh(y, out=y)
    y *= half
    y += half
    return y.astype(x.dtype, copy=False)


@operator("HardSigmoid")
def hard_sigmoid(x: Array, *, alpha: float = 0.2, beta: float = 0.5) -> Any:
    """ONNX HardSigmoid: max(0, min(1, alpha x + beta))."""
    kind = x.dtype.type
    line = kind(alpha) * x + kind(beta)
    return np.clip(line, 0, 1).astype(x.dtype, copy=False)


@operator("HardSwish")
def hard_swish(x: Array) -> Any:
    """ONNX HardSwish: x times the hard sigmoid with alpha 1/6 and beta 1/2."""
    return x * hard_sigmoid(x, alpha=1 / 6, beta=0.5)


@operator("Swish")
def swish(x: Array, *, alpha: float = 1.0) -> Any:
    """ONNX Swish: x sigmoid(alpha x)."""
    return x * sigmoid(x * x.dtype.type(alpha))


@operator("Softplus")
def softplus(x: Array) -> Any:
    """ONNX Softplus: log(1 + e^x), without overflow."""
    return np.logaddexp(x, x.dtype.type(0))


@operator("Softsign")
def softsign(x: Array) -> Any:
    """ONNX Softsign: x / (1 + |x|)."""
    return x / (1 + np.abs(x))


@operator("Mish")
def mish(x: Array) -> Any:
    """ONNX Mish: x tanh(softplus(x))."""
    return x * np.tanh(softplus(x))


@operator("Shrink")
def shrink(x: Array, *, bias: float = 0.0, lambd: float = 0.5) -> Any:
    """ONNX Shrink: x moved towards 0 by bias outside [-lambd, lambd]; 0 inside."""
    right = np.where(x > lambd, x - bias, 0)
    moved = np.where(x < -lambd, x + bias, right)
    return moved.astype(x.dtype, copy=False)


# erf(x) = tanh(x p(x^2)) with p a polynomial fitted to atanh(erf(x)) / x on |x| <= 4 (Lawson's
# iteration on the relative error of erf). Over all float32 x the error is at most 1.8e-7 absolute
# and 2.6e-7 relative: about 2 units in the last place. NumPy has no erf, but its tanh runs in
# vector registers.
_ERF = (1.1283792742348693, 0.10276905638943719, -0.00019183204872319807, -0.0006197836678610367,
        8.763698303280526e-05, -5.668423519424555e-06, 1.4184945434697698e-07)  # fmt: skip
_CHUNK = 1 << 14  # elements; a chunk and its temporaries stay in the second-level cache


def _tanh_form(x: Array, coefficients: tuple[float, ...], limit: float) -> Array:
    """Return tanh(x p(min(x^2, limit))) of one chunk."""
    square = np.square(x)
    # Five times as fast as numpy.minimum with a number.
    np.clip(square, np.float32(0), np.float32(limit), out=square)
    y = square * np.float32(coefficients[-1])
    for c in coefficients[-2:0:-1]:
        y += np.float32(c)
        y *= square
    y += np.float32(coefficients[0])
    y *= x
    np.tanh(y, out=y)
    return np.asarray(y)


@operator("Erf")
def erf(x: Array) -> Any:
    """ONNX Erf: the error function, to about 2 units in the last place of float32.

    float64 inputs are exact to double.
    """
    if x.dtype == np.float64:
        return np.frompyfunc(math.erf, 1, 1)(x).astype(np.float64)
    source = np.ascontiguousarray(x, dtype=np.float32).reshape(-1)
    result = np.empty_like(source)
    for start in range(0, source.size, _CHUNK):
        part = slice(start, start + _CHUNK)
        result[part] = _tanh_form(source[part], _ERF, 16.0)
    return result.reshape(x.shape).astype(x.dtype, copy=False)


# The same with x / sqrt(2) in place of x:
# erf(x / sqrt(2)) = tanh(x sum_i c_i 2^-i x^2i / sqrt(2)).
_GELU = tuple(c * 0.5**i * math.sqrt(0.5) for i, c in enumerate(_ERF))
_TANH_GAIN = math.sqrt(2 / math.pi)  # of GELU's approximation by tanh
_TANH_CUBIC = 0.044715


def gelu_rows(y: Array, approximate: str = "none") -> None:
    """Apply GELU in place to float32 rows (rows, width), chunk by chunk."""
    width = max(1, y.shape[-1])
    step = max(1, _CHUNK // width)
    for start in range(0, y.shape[0], step):
        x = y[start : start + step]
        if approximate == "tanh":
            z = _tanh_approximation(x)
        else:
            z = _tanh_form(x, _GELU, 32.0)
        z += np.float32(1)
        x *= np.float32(0.5)
        x *= z


def _tanh_approximation(x: Array) -> Array:
    """Return tanh(sqrt(2 / pi) (x + 0.044715 x^3)) of one chunk."""
    z: Array = np.square(x)
    z *= np.float32(_TANH_CUBIC * _TANH_GAIN)
    z += np.float32(_TANH_GAIN)
    z *= x
    np.tanh(z, out=z)
    return z


@operator("Gelu")
def gelu(x: Array, *, approximate: str = "none") -> Any:
    """ONNX Gelu: x Phi(x); with ``tanh``, 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))."""
    if x.dtype == np.float64:
        return _gelu_double(x, approximate)
    width = x.shape[-1] if x.ndim else 1
    copy = np.array(x, dtype=np.float32, order="C")
    y = copy.reshape(-1, width)
    gelu_rows(y, approximate)
    return y.reshape(x.shape).astype(x.dtype, copy=False)


def _gelu_double(x: Array, approximate: str) -> Any:
    if approximate == "tanh":
        inner = _TANH_GAIN * (x + _TANH_CUBIC * x**3)
        return 0.5 * x * (1 + np.tanh(inner))
    return 0.5 * x * (1 + erf(x * math.sqrt(0.5)))
