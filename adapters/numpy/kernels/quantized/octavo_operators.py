"""This backend's own quantized operators: what a recipe makes of linear and convolution layers.

Between them travel *centred* codes: q - zero_point, whole numbers of at most nine bits held as
float32, so that BLAS can multiply them (see :mod:`.integer`) and padding is zero. Names begin with
``octavo.``; a saved model and the standalone runner know no others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from octavo.adapters.numpy.graph import Array
from octavo.adapters.numpy.kernels.axes import along
from octavo.adapters.numpy.kernels.identity import IdentityCache
from octavo.adapters.numpy.kernels.linear import activate, product_pieces
from octavo.adapters.numpy.kernels.registry import Build, Kernel, compiled
from octavo.adapters.numpy.kernels.spatial.convolution import (
    Run,
    convolve,
    depthwise,
    grouped_panel,
)
from octavo.adapters.numpy.kernels.spatial.geometry import Geometry

from .integer import carrier, exact_blocks, integer_product


class _Epilogue:
    """What follows an exact sum: acc * scale + bias, activation.

    With an output scale, on to centred codes.
    """

    _OUTPUT_SCALE = 6  # which input of a quantized operator it is

    def __init__(self, build: Build) -> None:
        inputs = build.node.inputs
        self._activation = build.get("activation", "")
        self._requantizes = len(inputs) > self._OUTPUT_SCALE and bool(
            inputs[self._OUTPUT_SCALE]
        )
        low, high = build.get("low", 0), build.get("high", 0)
        # A ReLU is a higher lower bound, and scales commute with it; other activations come before
        # the output's scale.
        lowest = max(low, 0) if self._activation == "Relu" else low
        self._low, self._high = np.float32(lowest), np.float32(high)
        self._scales_early = self._activation in ("", "Relu")

    def factors(
        self, x_scale: Any, w_scale: Array, bias: Any, y_scale: Any
    ) -> tuple[Array, Any]:
        """Return what an exact sum is multiplied by, and what is added then."""
        scale = x_scale * w_scale
        if y_scale is None or not self._scales_early:
            return scale, bias
        return scale / y_scale, None if bias is None else bias / y_scale

    def __call__(
        self, y: Array, scale: Array, bias: Array | None, y_scale: Array | None
    ) -> None:
        """Work in place on exact sums (rows, channels)."""
        y *= scale
        if bias is not None:
            y += bias
        if not self._requantizes:
            activate(y, self._activation)
            return
        if not self._scales_early:
            activate(y, self._activation)
            y /= y_scale
        np.rint(y, out=y)
        np.clip(y, self._low, self._high, out=y)


def _centred(codes: Array, zero_point: Array | None, axis: int) -> Array:
    """Return codes - zero_point as float32; the zero point is per tensor or along ``axis``."""
    integers = codes.astype(np.float32)
    if zero_point is not None:
        integers -= along(zero_point.astype(np.float32), axis, codes.ndim)
    return integers


# Where the exact blocks of a weight begin: found once, however many candidates share its codes.
_blocks = IdentityCache()


@dataclass(frozen=True, slots=True)
class _Gemm:
    """A product of centred codes with one weight.

    Attributes:
        codes: The weight's, (K, N), or (N, K) where transposed.
        zero_point: Its; None where all are zero.
        transposed: See there.
        largest: Bound of the other operand.
        epilogue: What follows the sums.
        threads: That share the pieces.
    """

    codes: Array
    zero_point: Array | None
    transposed: bool
    largest: int
    epilogue: _Epilogue
    threads: int

    def panel(self, kind: Any) -> Array:
        """Return the weight's integers (K, N) as floats of a type."""
        channels_at = 0 if self.transposed else 1
        integers = _centred(self.codes, self.zero_point, channels_at).astype(
            kind, copy=False
        )
        return integers.T if self.transposed else integers

    def blocks(self) -> tuple[int, ...]:
        """Return where the weight's exact blocks begin."""
        key = (self.transposed, self.largest)
        found: tuple[int, ...] = _blocks.get(
            self.codes, key, lambda: exact_blocks(self.panel(np.float32), self.largest)
        )
        return found


@compiled("octavo.QuantizedGemm", empty=True)
def quantized_gemm(build: Build) -> Kernel:
    """Integer product of centred codes and a weight of codes (K, N), or (N, K) with ``transB``.

    Inputs: x, x_scale, weight, w_scale, w_zero_point, bias, y_scale. ``largest`` bounds |x|.
    """
    codes, zero_point = build.constant(2), build.constant(4)
    assert codes is not None
    transposed, largest = bool(build.get("transB", 0)), build.get("largest", 255)
    epilogue = _Epilogue(build)
    gemm = _Gemm(codes, zero_point, transposed, largest, epilogue, build.threads)
    blocks = gemm.blocks()
    depth = codes.shape[1 if transposed else 0]
    return partial(_quantized_gemm, gemm, blocks, carrier(depth, blocks))


def _quantized_gemm(
    gemm: _Gemm,
    blocks: tuple[int, ...],
    kind: Any,
    x: Any,
    x_scale: Any,
    w: Any,
    w_scale: Any,
    w_zero: Any = None,
    bias: Any = None,
    y_scale: Any = None,
    *,
    empty: Any,
) -> Array:
    # Made again in each run: the codes take a quarter of the memory.
    weight = gemm.panel(kind)
    width = weight.shape[1]
    is_per_row = x_scale.ndim > 0
    common = np.float32(1) if is_per_row else x_scale
    scale, shift = gemm.epilogue.factors(common, w_scale, bias, y_scale)
    row_scale = x_scale.reshape(-1, 1) if is_per_row else None
    out: Array = empty((*x.shape[:-1], width), np.float32)

    def product(a: Array, b: Array, target: Array) -> None:
        integer_product(a, b, blocks, target)

    def finish(y: Array, columns: slice) -> None:
        if row_scale is not None:
            y *= row_scale
        own_scale = scale[columns] if scale.ndim else scale
        own_shift = None if shift is None else shift[columns]
        gemm.epilogue(y, own_scale, own_shift, y_scale)

    # Scales per row belong to whole rows: one thread at a time then, over all of them.
    threads = 1 if is_per_row else gemm.threads
    rows, flat = x.reshape(-1, x.shape[-1]), out.reshape(-1, width)
    product_pieces(rows, weight, flat, threads, product, finish)
    return out


@dataclass(frozen=True, slots=True)
class _Conv:
    """A convolution of centred codes with one weight.

    Attributes:
        codes: The weight's, (kernel..., C / g, O).
        zero_point: Its; None where all are zero.
        groups: How many.
        largest: Bound of the other operand.
        geometry: The windows.
        epilogue: What follows the sums.
    """

    codes: Array
    zero_point: Array | None
    groups: int
    largest: int
    geometry: Geometry
    epilogue: _Epilogue

    def integers(self) -> Array:
        """Return the weight's integers as float32, laid out as its codes."""
        return _centred(self.codes, self.zero_point, -1)

    def panel(self, kind: Any) -> Array:
        """Return the weight's integers as floats of a type, laid out for products."""
        return grouped_panel(self.integers().astype(kind, copy=False), self.groups)

    def blocks(self) -> tuple[int, ...]:
        """Return where the weight's exact blocks begin."""
        key = (self.groups, self.largest)
        found: tuple[int, ...] = _blocks.get(
            self.codes, key, lambda: exact_blocks(self.panel(np.float32), self.largest)
        )
        return found


@compiled("octavo.QuantizedConv", empty=True)
def quantized_conv(build: Build) -> Kernel:
    """Integer convolution of centred codes and a weight of codes, laid out (kernel..., C / g, O).

    Inputs: x, x_scale, weight, w_scale, w_zero_point, bias, y_scale. ``largest`` bounds |x|.
    """
    codes, zero_point = build.constant(2), build.constant(4)
    assert codes is not None
    groups, largest = build.get("group", 1), build.get("largest", 255)
    *kernel, per_group, channels = codes.shape
    geometry = Geometry.read(build, tuple(kernel))
    conv = _Conv(codes, zero_point, groups, largest, geometry, _Epilogue(build))
    blocks = conv.blocks()
    kind = carrier(math.prod(kernel) * per_group, blocks)
    is_depthwise = per_group == 1 and groups == channels and len(blocks) == 2

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
    ) -> Array:
        scale, shift = conv.epilogue.factors(x_scale, w_scale, bias, y_scale)

        def finish(y: Array) -> None:
            conv.epilogue(y, scale, shift, y_scale)

        how = Run(finish, build.scratch, build.threads, empty)
        if is_depthwise:
            return depthwise(x, conv.integers()[..., 0, :], geometry, how)
        weight = conv.panel(kind)

        def product(rows: Array, out: Array) -> None:
            integer_product(rows, weight, blocks, out)

        return convolve(x, geometry, channels, groups, product, how)

    return run
