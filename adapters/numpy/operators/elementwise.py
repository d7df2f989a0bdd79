"""Element-wise operators. Source: the ONNX operator specification of each name."""

from __future__ import annotations

import math
from functools import reduce
from typing import Any

import numpy as np

from .registry import operator

_UFUNCS: dict[str, Any] = {
    "Abs": np.abs, "Ceil": np.ceil, "Cos": np.cos, "Cosh": np.cosh, "Exp": np.exp, "Floor": np.floor, "Log": np.log,
    "Neg": np.negative, "Not": np.logical_not, "Round": np.rint, "Sign": np.sign, "Sin": np.sin, "Sinh": np.sinh,
    "Sqrt": np.sqrt, "Tan": np.tan, "Tanh": np.tanh, "Acos": np.arccos, "Acosh": np.arccosh, "Asin": np.arcsin,
    "Asinh": np.arcsinh, "Atan": np.arctan, "Atanh": np.arctanh, "IsNaN": np.isnan, "BitwiseNot": np.bitwise_not,
    "Reciprocal": np.reciprocal, "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Equal": np.equal,
    "Greater": np.greater, "Less": np.less, "GreaterOrEqual": np.greater_equal, "LessOrEqual": np.less_equal,
    "And": np.logical_and, "Or": np.logical_or, "Xor": np.logical_xor, "BitwiseAnd": np.bitwise_and,
    "BitwiseOr": np.bitwise_or, "BitwiseXor": np.bitwise_xor,
}  # fmt: skip


def _plain(ufunc: Any) -> Any:
    def call(*inputs: Any, out: Any = None) -> Any:
        return ufunc(*inputs, out=out)

    return call


for _name, _ufunc in _UFUNCS.items():
    operator(_name, out=True)(_plain(_ufunc))


@operator("Identity")
def identity(x: Any) -> Any:
    """Return the input."""
    return x


@operator("Div", out=True)
def divide(a: np.ndarray, b: np.ndarray, *, out: Any = None) -> Any:
    """a / b; integers truncate towards zero, as C and ONNX Runtime do."""
    if a.dtype.kind == "u":
        return np.floor_divide(a, b, out=out)
    if a.dtype.kind == "i":
        return (np.floor_divide(np.abs(a), np.abs(b)) * np.sign(a) * np.sign(b)).astype(a.dtype, copy=False)
    return np.divide(a, b, out=out)


@operator("Pow")
def power(a: np.ndarray, b: np.ndarray) -> Any:
    """a ** b, in the type of a. Small whole exponents are products, which is many times faster than pow()."""
    if b.size == 1 and np.issubdtype(a.dtype, np.floating):
        exponent = float(b.reshape(()))
        if exponent == 2.0:
            return np.square(a) if b.ndim <= a.ndim else np.square(a).reshape((1,) * (b.ndim - a.ndim) + a.shape)
        if exponent == 3.0 and b.ndim <= a.ndim:
            return a * a * a
    return np.power(a, b).astype(a.dtype, copy=False)


@operator("Mod")
def modulo(a: np.ndarray, b: np.ndarray, *, fmod: int = 0) -> Any:
    """Remainder, with the sign of b (Python), or of a where ``fmod`` is set."""
    return (np.fmod if fmod else np.mod)(a, b)


@operator("BitShift")
def bit_shift(a: np.ndarray, b: np.ndarray, *, direction: str) -> Any:
    """a << b or a >> b."""
    return (np.left_shift if direction == "LEFT" else np.right_shift)(a, b)


@operator("Max")
def maximum(*xs: np.ndarray) -> Any:
    """Largest of the inputs, element by element."""
    return reduce(np.maximum, xs)


@operator("Min")
def minimum(*xs: np.ndarray) -> Any:
    """Smallest of the inputs, element by element."""
    return reduce(np.minimum, xs)


@operator("Sum")
def total(*xs: np.ndarray) -> Any:
    """Sum of the inputs."""
    return reduce(np.add, xs)


@operator("Mean")
def mean(*xs: np.ndarray) -> Any:
    """Mean of the inputs."""
    return reduce(np.add, xs) / xs[0].dtype.type(len(xs))


@operator("Where")
def where(condition: np.ndarray, a: np.ndarray, b: np.ndarray) -> Any:
    """A where the condition holds, else b."""
    return np.where(condition, a, b)


@operator("Clip", since=6)
def clip_6(x: np.ndarray, *, min: float = -3.4028234663852886e38, max: float = 3.4028234663852886e38) -> Any:
    """Clip to constants (operator sets 6 to 10)."""
    return np.clip(x, x.dtype.type(min), x.dtype.type(max))


@operator("Clip", since=11)
def clip(x: np.ndarray, low: np.ndarray | None = None, high: np.ndarray | None = None) -> Any:
    """min(max(x, low), high); if low > high the result is high."""
    result = x if low is None else np.maximum(x, low)
    return result if high is None else np.minimum(result, high)


@operator("IsInf")
def is_inf(x: np.ndarray, *, detect_negative: int = 1, detect_positive: int = 1) -> Any:
    """Where x is infinite."""
    return (np.isneginf(x) & bool(detect_negative)) | (np.isposinf(x) & bool(detect_positive))


@operator("Relu", out=True)
def relu(x: np.ndarray, *, out: Any = None) -> Any:
    """max(x, 0)."""
    return np.maximum(x, x.dtype.type(0), out=out)


@operator("LeakyRelu")
def leaky_relu(x: np.ndarray, *, alpha: float = 0.01) -> Any:
    """X where positive, alpha x elsewhere."""
    return np.where(x < 0, x * x.dtype.type(alpha), x)


@operator("PRelu")
def prelu(x: np.ndarray, slope: np.ndarray) -> Any:
    """X where positive, slope x elsewhere."""
    return np.where(x < 0, x * slope, x)


@operator("ThresholdedRelu")
def thresholded_relu(x: np.ndarray, *, alpha: float = 1.0) -> Any:
    """X where it exceeds alpha, else 0."""
    return np.where(x > alpha, x, x.dtype.type(0))


@operator("Elu")
def elu(x: np.ndarray, *, alpha: float = 1.0) -> Any:
    """X where positive, alpha (e^x - 1) elsewhere."""
    return np.where(x < 0, x.dtype.type(alpha) * np.expm1(np.minimum(x, 0)), x)


@operator("Celu")
def celu(x: np.ndarray, *, alpha: float = 1.0) -> Any:
    """max(0, x) + min(0, alpha (e^(x / alpha) - 1))."""
    a = x.dtype.type(alpha)
    return np.maximum(x, 0) + np.minimum(0, a * np.expm1(np.minimum(x, 0) / a))


@operator("Selu")
def selu(x: np.ndarray, *, alpha: float = 1.67326319217681884765625, gamma: float = 1.05070102214813232421875) -> Any:
    """Gamma times the exponential linear unit."""
    return x.dtype.type(gamma) * np.where(x > 0, x, x.dtype.type(alpha) * np.expm1(np.minimum(x, 0)))


@operator("Sigmoid")
def sigmoid(x: np.ndarray) -> Any:
    """1 / (1 + e^-x), as (1 + tanh(x / 2)) / 2, which cannot overflow."""
    wide = np.float32 if x.dtype.itemsize < 4 else x.dtype
    half = np.dtype(wide).type(0.5)
    y = np.multiply(x, half, dtype=wide)
    np.tanh(y, out=y)
    y *= half
    y += half
    return y.astype(x.dtype, copy=False)


@operator("HardSigmoid")
def hard_sigmoid(x: np.ndarray, *, alpha: float = 0.2, beta: float = 0.5) -> Any:
    """max(0, min(1, alpha x + beta))."""
    return np.clip(x.dtype.type(alpha) * x + x.dtype.type(beta), 0, 1).astype(x.dtype, copy=False)


@operator("HardSwish")
def hard_swish(x: np.ndarray) -> Any:
    """X times the hard sigmoid with alpha 1/6 and beta 1/2."""
    return x * hard_sigmoid(x, alpha=1 / 6, beta=0.5)


@operator("Swish")
def swish(x: np.ndarray, *, alpha: float = 1.0) -> Any:
    """X sigmoid(alpha x)."""
    return x * sigmoid(x * x.dtype.type(alpha))


@operator("Softplus")
def softplus(x: np.ndarray) -> Any:
    """log(1 + e^x), without overflow."""
    return np.logaddexp(x, x.dtype.type(0))


@operator("Softsign")
def softsign(x: np.ndarray) -> Any:
    """X / (1 + |x|)."""
    return x / (1 + np.abs(x))


@operator("Mish")
def mish(x: np.ndarray) -> Any:
    """X tanh(softplus(x))."""
    return x * np.tanh(softplus(x))


@operator("Shrink")
def shrink(x: np.ndarray, *, bias: float = 0.0, lambd: float = 0.5) -> Any:
    """X moved towards 0 by bias outside [-lambd, lambd]; 0 inside."""
    return np.where(x < -lambd, x + bias, np.where(x > lambd, x - bias, 0)).astype(x.dtype, copy=False)


# erf(x) = tanh(x p(x^2)) with p a polynomial fitted to atanh(erf(x)) / x on |x| <= 4 (Lawson's iteration on the
# relative error of erf). Over all float32 x the error is at most 1.8e-7 absolute and 2.6e-7 relative: about 2 units in
# the last place. NumPy has no erf, but its tanh runs in vector registers.
_ERF = (1.1283792742348693, 0.10276905638943719, -0.00019183204872319807, -0.0006197836678610367,
        8.763698303280526e-05, -5.668423519424555e-06, 1.4184945434697698e-07)  # fmt: skip
_ERF_CHUNK = 1 << 14  # elements; a chunk and its two temporaries stay in the second-level cache


def _erf_into(x: np.ndarray, out: np.ndarray) -> None:
    for start in range(0, x.size, _ERF_CHUNK):
        part = x[start : start + _ERF_CHUNK]
        square = np.square(part)
        np.minimum(square, np.float32(16.0), out=square)
        y = square * np.float32(_ERF[-1])
        for coefficient in _ERF[-2:0:-1]:
            y += np.float32(coefficient)
            y *= square
        y += np.float32(_ERF[0])
        y *= part
        np.tanh(y, out=out[start : start + _ERF_CHUNK])


@operator("Erf")
def erf(x: np.ndarray) -> Any:
    """The error function, to about 2 units in the last place of float32; float64 inputs are exact to double."""
    if x.dtype == np.float64:
        return np.frompyfunc(math.erf, 1, 1)(x).astype(np.float64)
    source = np.ascontiguousarray(x, dtype=np.float32).reshape(-1)
    result = np.empty_like(source)
    _erf_into(source, result)
    return result.reshape(x.shape).astype(x.dtype, copy=False)


@operator("Gelu")
def gelu(x: np.ndarray, *, approximate: str = "none") -> Any:
    """x Phi(x); with ``tanh``, 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))."""
    kind = x.dtype.type
    if approximate == "tanh":
        y = np.square(x)
        y *= kind(0.044715)
        y += kind(1)
        y *= x
        y *= kind(math.sqrt(2 / math.pi))
        np.tanh(y, out=y)
    else:
        y = erf(x * kind(math.sqrt(0.5)))
    y += kind(1)
    y *= x
    y *= kind(0.5)
    return y


@operator("Dropout")
def dropout(x: np.ndarray, ratio: Any = None, training: Any = None, *, seed: int = 0) -> Any:
    """Return the input and a mask of ones: inference drops nothing.

    Raises:
        ValueError: In training mode, which this backend does not have.
    """
    if training is not None and bool(np.asarray(training).reshape(())) and (ratio is None or float(np.asarray(ratio).reshape(()))):
        raise ValueError("training mode drops values at random; the NumPy backend is for inference")
    return x, np.ones(x.shape, np.bool_)

