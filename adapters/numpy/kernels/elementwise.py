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


_SMALL = 256  # elements; below it a place in the memory plan costs more than it saves


def empty_like(empty: Any, shape: tuple[int, ...], dtype: Any, like: np.ndarray) -> np.ndarray:
    """Allocate with the memory order of ``like``, so that channels-last values stay channels-last."""
    if like.flags.c_contiguous or like.ndim != len(shape):
        return np.asarray(empty(shape, dtype))
    order = sorted(range(like.ndim), key=lambda axis: -like.strides[axis])
    made = empty(tuple(shape[axis] for axis in order), dtype)
    return np.asarray(made.transpose(np.argsort(order)))


def _plain(ufunc: Any) -> Any:
    def call(*inputs: Any, empty: Any) -> Any:
        first = inputs[0]
        if (
            first.dtype != np.float32
            or first.size < _SMALL
            or any(x.dtype != np.float32 for x in inputs[1:])
        ):
            return ufunc(*inputs)
        shape = np.broadcast_shapes(*(x.shape for x in inputs)) if len(inputs) > 1 else first.shape
        largest = max(inputs, key=lambda x: x.size)
        return ufunc(*inputs, out=empty_like(empty, shape, np.float32, largest))

    return call


_TO_BOOL = (
    "Equal",
    "Greater",
    "Less",
    "GreaterOrEqual",
    "LessOrEqual",
    "And",
    "Or",
    "Xor",
    "Not",
    "IsNaN",
)
for _name, _ufunc in _UFUNCS.items():
    if _name in _TO_BOOL:
        operator(_name)(_ufunc)
    else:
        operator(_name, empty=True)(_plain(_ufunc))


@operator("Identity")
def identity(x: Any) -> Any:
    """Return the input."""
    return x


_divide = _plain(np.divide)


@operator("Div", empty=True)
def divide(a: np.ndarray, b: np.ndarray, *, empty: Any = np.empty) -> Any:
    """a / b; integers truncate towards zero, as C and ONNX Runtime do."""
    if a.dtype.kind == "u":
        return np.floor_divide(a, b)
    if a.dtype.kind == "i":
        return (np.floor_divide(np.abs(a), np.abs(b)) * np.sign(a) * np.sign(b)).astype(
            a.dtype, copy=False
        )
    return _divide(a, b, empty=empty)


@operator("Pow")
def power(a: np.ndarray, b: np.ndarray) -> Any:
    """a ** b, in the type of a. Small whole exponents are products, which is many times faster than pow()."""
    if b.size == 1 and np.issubdtype(a.dtype, np.floating):
        exponent = float(b.reshape(()))
        if exponent == 2.0:
            return (
                np.square(a)
                if b.ndim <= a.ndim
                else np.square(a).reshape((1,) * (b.ndim - a.ndim) + a.shape)
            )
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
def clip_6(
    x: np.ndarray, *, min: float = -3.4028234663852886e38, max: float = 3.4028234663852886e38
) -> Any:
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


@operator("Relu", empty=True)
def relu(x: np.ndarray, *, empty: Any = np.empty) -> Any:
    """max(x, 0)."""
    out = empty_like(empty, x.shape, x.dtype, x)
    if x.dtype.kind != "f":
        return np.maximum(x, x.dtype.type(0), out=out)
    return np.clip(x, x.dtype.type(0), x.dtype.type(np.inf), out=out)


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
def selu(
    x: np.ndarray,
    *,
    alpha: float = 1.67326319217681884765625,
    gamma: float = 1.05070102214813232421875,
) -> Any:
    """Gamma times the exponential linear unit."""
    return x.dtype.type(gamma) * np.where(
        x > 0, x, x.dtype.type(alpha) * np.expm1(np.minimum(x, 0))
    )


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
    return np.where(x < -lambd, x + bias, np.where(x > lambd, x - bias, 0)).astype(
        x.dtype, copy=False
    )


# erf(x) = tanh(x p(x^2)) with p a polynomial fitted to atanh(erf(x)) / x on |x| <= 4 (Lawson's iteration on the
# relative error of erf). Over all float32 x the error is at most 1.8e-7 absolute and 2.6e-7 relative: about 2 units in
# the last place. NumPy has no erf, but its tanh runs in vector registers.
_ERF = (1.1283792742348693, 0.10276905638943719, -0.00019183204872319807, -0.0006197836678610367,
        8.763698303280526e-05, -5.668423519424555e-06, 1.4184945434697698e-07)  # fmt: skip
_CHUNK = 1 << 14  # elements; a chunk and its temporaries stay in the second-level cache


def _tanh_form(x: np.ndarray, coefficients: tuple[float, ...], limit: float) -> np.ndarray:
    """Return tanh(x p(min(x^2, limit))) of one chunk."""
    square = np.square(x)
    np.clip(
        square, np.float32(0), np.float32(limit), out=square
    )  # five times as fast as numpy.minimum with a number
    y = square * np.float32(coefficients[-1])
    for c in coefficients[-2:0:-1]:
        y += np.float32(c)
        y *= square
    y += np.float32(coefficients[0])
    y *= x
    np.tanh(y, out=y)
    return np.asarray(y)


@operator("Erf")
def erf(x: np.ndarray) -> Any:
    """The error function, to about 2 units in the last place of float32; float64 inputs are exact to double."""
    if x.dtype == np.float64:
        return np.frompyfunc(math.erf, 1, 1)(x).astype(np.float64)
    source = np.ascontiguousarray(x, dtype=np.float32).reshape(-1)
    result = np.empty_like(source)
    for start in range(0, source.size, _CHUNK):
        result[start : start + _CHUNK] = _tanh_form(source[start : start + _CHUNK], _ERF, 16.0)
    return result.reshape(x.shape).astype(x.dtype, copy=False)


# The same with x / sqrt(2) in place of x: erf(x / sqrt(2)) = tanh(x sum_i c_i 2^-i x^2i / sqrt(2)).
_GELU = tuple(c * 0.5**i * math.sqrt(0.5) for i, c in enumerate(_ERF))


def gelu_rows(y: np.ndarray, approximate: str = "none") -> None:
    """Apply GELU in place to float32 rows (rows, width), chunk by chunk."""
    step = max(1, _CHUNK // max(1, y.shape[-1]))
    for start in range(0, y.shape[0], step):
        x = y[start : start + step]
        if approximate == "tanh":
            z = np.square(x)
            z *= np.float32(0.044715 * math.sqrt(2 / math.pi))
            z += np.float32(math.sqrt(2 / math.pi))
            z *= x
            np.tanh(z, out=z)
        else:
            z = _tanh_form(x, _GELU, 32.0)
        z += np.float32(1)
        x *= np.float32(0.5)
        x *= z


@operator("Gelu")
def gelu(x: np.ndarray, *, approximate: str = "none") -> Any:
    """x Phi(x); with ``tanh``, 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))."""
    if x.dtype == np.float64:
        inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
        return (
            0.5 * x * (1 + (np.tanh(inner) if approximate == "tanh" else erf(x * math.sqrt(0.5))))
        )
    y = np.array(x, dtype=np.float32, order="C").reshape(-1, x.shape[-1] if x.ndim else 1)
    gelu_rows(y, approximate)
    return y.reshape(x.shape).astype(x.dtype, copy=False)


@operator("Dropout")
def dropout(
    x: np.ndarray, given: Any = None, training: Any = None, *, seed: int = 0, ratio: float = 0.5
) -> Any:
    """Return the input and a mask of ones: inference drops nothing.

    Raises:
        ValueError: In training mode, which this backend does not have.
    """
    share = ratio if given is None else float(np.asarray(given).reshape(()))
    if training is not None and bool(np.asarray(training).reshape(())) and share:
        raise ValueError("training mode drops values at random; the NumPy backend is for inference")
    return x, np.ones(x.shape, np.bool_)
