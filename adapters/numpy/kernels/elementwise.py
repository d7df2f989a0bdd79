"""Element-wise arithmetic and logic. Source: the ONNX operator specification of each name."""

from __future__ import annotations

from functools import reduce
from typing import Any

import numpy as np

from octavo.adapters.numpy.graph import Array

from .registry import Kernel, operator

_NUMBERS: dict[str, np.ufunc] = {
    "Abs": np.abs, "Acos": np.arccos, "Acosh": np.arccosh, "Add": np.add, "Asin": np.arcsin,
    "Asinh": np.arcsinh, "Atan": np.arctan, "Atanh": np.arctanh, "BitwiseAnd": np.bitwise_and,
    "BitwiseNot": np.bitwise_not, "BitwiseOr": np.bitwise_or, "BitwiseXor": np.bitwise_xor,
    "Ceil": np.ceil, "Cos": np.cos, "Cosh": np.cosh, "Exp": np.exp, "Floor": np.floor,
    "Log": np.log, "Mul": np.multiply, "Neg": np.negative, "Reciprocal": np.reciprocal,
    "Round": np.rint, "Sign": np.sign, "Sin": np.sin, "Sinh": np.sinh, "Sqrt": np.sqrt,
    "Sub": np.subtract, "Tan": np.tan, "Tanh": np.tanh,
}  # fmt: skip
"""Operators that are one NumPy function, and whose results take the inputs' type."""

_TRUTHS: dict[str, np.ufunc] = {
    "And": np.logical_and,
    "Equal": np.equal,
    "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
    "IsNaN": np.isnan,
    "Less": np.less,
    "LessOrEqual": np.less_equal,
    "Not": np.logical_not,
    "Or": np.logical_or,
    "Xor": np.logical_xor,
}
"""Operators that are one NumPy function, and whose results are booleans."""

_SMALL = 256  # elements; below it a place in the memory plan costs more than it saves


def empty_like(empty: Any, shape: tuple[int, ...], dtype: Any, like: Array) -> Array:
    """Allocate with the memory order of ``like``, so that channels-last values stay so."""
    if like.flags.c_contiguous or like.ndim != len(shape):
        return np.asarray(empty(shape, dtype))
    # Axes from the longest stride to the shortest: the order in which they lie in memory.
    order = sorted(range(like.ndim), key=lambda axis: -like.strides[axis])
    in_memory = tuple(shape[axis] for axis in order)
    made = empty(in_memory, dtype)
    return np.asarray(made.transpose(np.argsort(order)))


def _planned(ufunc: np.ufunc) -> Kernel:
    """Return a kernel whose larger float32 results have a place in the memory plan."""

    def call(*inputs: Any, empty: Any) -> Any:
        first, *others = inputs
        if first.dtype != np.float32 or first.size < _SMALL:
            return ufunc(*inputs)
        if any(x.dtype != np.float32 for x in others):
            return ufunc(*inputs)
        shape = first.shape
        largest = first
        if others:
            shapes = [x.shape for x in inputs]
            shape = np.broadcast_shapes(*shapes)
            largest = max(inputs, key=lambda x: x.size)
        out = empty_like(empty, shape, np.float32, largest)
        return ufunc(*inputs, out=out)

    return call


for _name, _ufunc in _NUMBERS.items():
    operator(_name, empty=True)(_planned(_ufunc))
for _name, _ufunc in _TRUTHS.items():
    operator(_name)(_ufunc)


@operator("Identity")
def identity(x: Any) -> Any:
    """ONNX Identity: the input."""
    return x


_divide_floats = _planned(np.divide)


@operator("Div", empty=True)
def divide(a: Array, b: Array, *, empty: Any = np.empty) -> Any:
    """ONNX Div: a / b; integers truncate towards zero, as C and ONNX Runtime do."""
    if a.dtype.kind == "u":
        return np.floor_divide(a, b)
    if a.dtype.kind == "i":
        quotient = np.floor_divide(np.abs(a), np.abs(b))
        signed = quotient * np.sign(a) * np.sign(b)
        return signed.astype(a.dtype, copy=False)
    return _divide_floats(a, b, empty=empty)


@operator("Pow")
def power(a: Array, b: Array) -> Any:
    """ONNX Pow: a ** b, in the type of a."""
    # Small whole exponents are products, which is many times faster than pow().
    if b.size == 1 and np.issubdtype(a.dtype, np.floating):
        exponent = float(b.reshape(()))
        added = max(b.ndim - a.ndim, 0)  # axes that broadcasting gives the result
        if exponent == 2.0:
            square = np.square(a)
            return square.reshape((1,) * added + a.shape) if added else square
        if exponent == 3.0 and not added:
            return a * a * a
    return np.power(a, b).astype(a.dtype, copy=False)


@operator("Mod")
def modulo(a: Array, b: Array, *, fmod: int = 0) -> Any:
    """ONNX Mod: remainder with the sign of b (Python), or of a where ``fmod`` is set."""
    return np.fmod(a, b) if fmod else np.mod(a, b)


@operator("BitShift")
def bit_shift(a: Array, b: Array, *, direction: str) -> Any:
    """ONNX BitShift: a << b or a >> b."""
    return np.left_shift(a, b) if direction == "LEFT" else np.right_shift(a, b)


@operator("Max")
def maximum(*xs: Array) -> Any:
    """ONNX Max: the largest of the inputs, element by element."""
    return reduce(np.maximum, xs)


@operator("Min")
def minimum(*xs: Array) -> Any:
    """ONNX Min: the smallest of the inputs, element by element."""
    return reduce(np.minimum, xs)


@operator("Sum")
def total(*xs: Array) -> Any:
    """ONNX Sum: the sum of the inputs."""
    return reduce(np.add, xs)


@operator("Mean")
def mean(*xs: Array) -> Any:
    """ONNX Mean: the mean of the inputs."""
    return reduce(np.add, xs) / xs[0].dtype.type(len(xs))


@operator("Where")
def where(condition: Array, a: Array, b: Array) -> Any:
    """ONNX Where: a where the condition holds, else b."""
    return np.where(condition, a, b)


_LARGEST = float(np.finfo(np.float32).max)


@operator("Clip", since=6)
def clip_6(x: Array, *, min: float = -_LARGEST, max: float = _LARGEST) -> Any:
    """ONNX Clip-6: clip to constants."""
    return np.clip(x, x.dtype.type(min), x.dtype.type(max))


@operator("Clip", since=11)
def clip(x: Array, low: Array | None = None, high: Array | None = None) -> Any:
    """ONNX Clip-11: min(max(x, low), high); if low > high the result is high."""
    if low is not None:
        x = np.maximum(x, low)
    if high is not None:
        x = np.minimum(x, high)
    return x


@operator("IsInf")
def is_inf(x: Array, *, detect_negative: int = 1, detect_positive: int = 1) -> Any:
    """ONNX IsInf: where x is infinite."""
    below = np.isneginf(x) & bool(detect_negative)
    above = np.isposinf(x) & bool(detect_positive)
    return below | above


@operator("Dropout")
def dropout(
    x: Array,
    given: Any = None,
    training: Any = None,
    *,
    seed: int = 0,
    ratio: float = 0.5,
) -> Any:
    """ONNX Dropout: the input and a mask of ones, for inference drops nothing.

    Raises:
        ValueError: In training mode, which this backend does not have.
    """
    share = ratio if given is None else float(np.asarray(given).reshape(()))
    is_training = training is not None and bool(np.asarray(training).reshape(()))
    if is_training and share:
        raise ValueError(
            "training mode drops values at random; the NumPy backend is for inference"
        )
    return x, np.ones(x.shape, np.bool_)
