"""What one op computes, in plain NumPy: the arithmetic that backends are held against.

It is written from the operators' specifications (ONNX: MatMul-13, Conv-22, ConvTranspose-22,
Gather-13, QuantizeLinear-25, DynamicQuantizeLinear-11) and shares no line with the core's numerics
or with any backend, so that a fault of those shows against it. Everything is float64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from octavo.core.contract.candidate import OpParameters
from octavo.core.numerics.affine import QuantParams
from octavo.core.numerics.arrays import to_numpy
from octavo.core.values.graph import Attribute, Op
from octavo.core.values.scheme import QuantSpec

KNOWN = frozenset({"linear", "conv", "conv_transpose", "embedding", "matmul", "add"})
"""Types of ops that :func:`forward` computes."""

TINY = 1e-30
ALL = slice(None)


def forward(
    op: Op,
    inputs: Sequence[np.ndarray],
    weight: np.ndarray | None,
    bias: np.ndarray | None,
) -> np.ndarray | None:
    """Return what an op writes, float64, before any activation that is fused into it.

    Args:
        op: The op.
        inputs: What it reads, in its order.
        weight: Its weight in the shape that it states.
        bias: Shape (channels,), or None.

    Returns:
        None for an op whose formula is not known here.
    """
    if op.type == "embedding" and weight is not None and len(inputs) == 1:
        return np.take(weight, inputs[0].astype(np.int64), axis=0)
    two = len(inputs) == 2 and weight is None
    if op.type == "matmul" and two:
        return np.asarray(inputs[0] @ inputs[1])
    if op.type == "add" and two:
        return np.asarray(inputs[0] + inputs[1])
    if weight is None or len(inputs) != 1:
        return None
    if op.type == "linear" and weight.ndim == 2:
        return _linear(op, inputs[0], weight, bias)
    if op.type == "conv":
        return _with_bias(_conv(inputs[0], weight, op.attributes), bias)
    if op.type == "conv_transpose":
        return _with_bias(_transposed(inputs[0], weight, op.attributes), bias)
    return None


def _linear(
    op: Op, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None
) -> np.ndarray:
    is_rows = op.weight is not None and op.weight.channel_axis == 0
    y = x @ (weight.T if is_rows else weight)
    return np.asarray(y if bias is None else y + bias)


def _with_bias(y: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    if bias is None:
        return y
    return np.asarray(y + bias.reshape(-1, *(1,) * (y.ndim - 2)))


def _window(
    attributes: Mapping[str, Attribute], axes: int
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int]:
    """Return strides, pads, dilations and groups; what is left out is 1, 0, 1 and 1."""

    def found(name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        given = attributes.get(name, default)
        return given if isinstance(given, tuple) else default

    groups = attributes.get("groups", 1)
    return (
        found("strides", (1,) * axes),
        found("pads", (0,) * (2 * axes)),
        found("dilations", (1,) * axes),
        groups if isinstance(groups, int) else 1,
    )


def _conv(
    x: np.ndarray, weight: np.ndarray, attributes: Mapping[str, Attribute]
) -> np.ndarray:
    """Return a convolution; x (N, C, ...), weight (O, C / groups, ...)."""
    axes = x.ndim - 2
    strides, pads, dilations, groups = _window(attributes, axes)
    around = tuple(zip(pads[:axes], pads[axes:], strict=True))
    padded = np.pad(x, ((0, 0), (0, 0), *around))
    kernel = weight.shape[2:]
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    spatial = tuple(range(2, x.ndim))
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach, spatial)
    steps = tuple(slice(None, None, s) for s in strides)
    holes = tuple(slice(None, None, d) for d in dilations)
    patches = windows[(ALL, ALL, *steps, *holes)]
    places = patches.shape[2 : 2 + axes]
    batch = x.shape[0]
    apart = patches.reshape(batch, groups, -1, *places, *kernel)
    moved = np.moveaxis(apart, 2, 2 + axes)  # batch, group, places, channel, kernel
    rows = moved.reshape(batch, groups, int(np.prod(places)), -1)
    matrices = weight.reshape(groups, weight.shape[0] // groups, -1)
    y = np.einsum("ngpk,gok->ngop", rows, matrices, optimize=True)
    return np.asarray(y.reshape(batch, weight.shape[0], *places))


def _transposed(
    x: np.ndarray, weight: np.ndarray, attributes: Mapping[str, Attribute]
) -> np.ndarray:
    """Return a transposed convolution; x (N, C, ...), weight (C, O / groups, ...)."""
    axes = x.ndim - 2
    strides, pads, dilations, groups = _window(attributes, axes)
    kernel = weight.shape[2:]
    sizes = [
        (n - 1) * s + (k - 1) * d + 1
        for n, s, k, d in zip(x.shape[2:], strides, kernel, dilations, strict=True)
    ]
    batch, of_group = x.shape[0], weight.shape[1]
    whole = np.zeros((batch, groups, of_group, *sizes))
    given = x.reshape(batch, groups, -1, *x.shape[2:])
    matrices = weight.reshape(groups, -1, of_group, *kernel)
    # One step for each place of the kernel: what it adds lies on a grid of the output.
    for place in product(*map(range, kernel)):
        at = tuple(
            slice(p * d, p * d + (n - 1) * s + 1, s)
            for p, d, n, s in zip(place, dilations, x.shape[2:], strides, strict=True)
        )
        of_place: tuple[Any, ...] = (ALL, ALL, ALL, *place)
        of_grid: tuple[Any, ...] = (ALL, ALL, ALL, *at)
        added = np.einsum("ngc...,gco->ngo...", given, matrices[of_place])
        whole[of_grid] += added
    y = whole.reshape(batch, groups * of_group, *sizes)
    inner = tuple(
        slice(first, size - last)
        for first, last, size in zip(pads[:axes], pads[axes:], sizes, strict=True)
    )
    return y[(ALL, ALL, *inner)]


# Rounding


def rounded(x: np.ndarray, params: QuantParams) -> np.ndarray:
    """Return ``x`` rounded to the grid of one scale and zero point, float64."""
    scale = np.asarray(to_numpy(params.scale), np.float64)
    zero = np.asarray(to_numpy(params.zero_point), np.float64)
    return _on_grid(x, scale, zero, params.spec)


def rounded_at_run_time(x: np.ndarray, spec: QuantSpec) -> np.ndarray | None:
    """Return ``x`` rounded over the range that it has itself, as a dynamic scheme rounds it.

    Returns:
        None for a dtype or a granularity that is not known here.
    """
    if not spec.dtype.lstrip("u").startswith("int"):
        return None
    if spec.granularity == "tensor":
        return _by_own_range(x.reshape(1, -1), spec).reshape(x.shape)
    if spec.granularity == "token":
        return _by_own_range(x.reshape(-1, x.shape[-1]), spec).reshape(x.shape)
    size = spec.group_size
    if size is None or x.shape[-1] % size:
        return None
    return _by_own_range(x.reshape(-1, size), spec).reshape(x.shape)


def _by_own_range(rows: np.ndarray, spec: QuantSpec) -> np.ndarray:
    first, last = _codes(spec)
    low = np.minimum(rows.min(axis=1, keepdims=True), 0)
    high = np.maximum(rows.max(axis=1, keepdims=True), 0)
    if spec.symmetric:
        middle = 0 if first < 0 else (first + last + 1) // 2
        scale = np.maximum(-low, high) / (last - middle)
        zero = np.full_like(scale, middle)
    else:
        scale = (high - low) / (last - first)
        zero = np.round(first - low / np.maximum(scale, TINY))
    return _on_grid(rows, np.maximum(scale, TINY), zero, spec)


def _on_grid(
    x: np.ndarray, scale: np.ndarray, zero: np.ndarray, spec: QuantSpec
) -> np.ndarray:
    first, last = _codes(spec)
    codes = np.clip(np.round(x / scale) + zero, first, last)
    return np.asarray((codes - zero) * scale)


def _codes(spec: QuantSpec) -> tuple[int, int]:
    """Return the smallest and the largest code; the lowest of a symmetric int8 is left out."""
    count = 2 ** (spec.bits - spec.reduce_range)
    if spec.dtype.startswith("u"):
        return 0, count - 1
    is_balanced = spec.symmetric and count >= 128
    return -count // 2 + is_balanced, count // 2 - 1


def rounded_forward(
    op: Op,
    inputs: Sequence[np.ndarray],
    decided: OpParameters,
    own_bias: Any,
    *,
    float_inputs: bool = False,
) -> np.ndarray | None:
    """Return what an op must write with what was decided for it, before a fused activation.

    Args:
        op: The op.
        inputs: What it reads, float.
        decided: The core's decisions.
        own_bias: The model's own bias, or None.
        float_inputs: Leave the inputs as they are: what a backend computes that rounds the weight
            alone.

    Returns:
        None for what cannot be computed here.
    """
    scheme = decided.scheme
    seen: list[np.ndarray] = []
    for index, x in enumerate(inputs):
        y = x if float_inputs else _input(x, index, decided)
        if y is None:
            return None
        seen.append(y)
    if scheme.weight is not None and decided.weight is None:
        return None
    weight = decided.weight
    numbers = None if weight is None else _array(weight.dequantize())
    bias = own_bias if decided.bias is None else decided.bias
    return forward(op, seen, numbers, None if bias is None else _array(bias))


def _input(x: np.ndarray, index: int, decided: OpParameters) -> np.ndarray | None:
    scheme = decided.scheme
    if scheme.mode == "dynamic" and scheme.input is not None:
        return rounded_at_run_time(x, scheme.input)
    if scheme.mode == "static" and index < len(decided.inputs):
        params = decided.inputs[index]
        return x if params is None else rounded(x, params)
    return x


def _array(value: Any) -> np.ndarray:
    return np.asarray(to_numpy(value), np.float64)
