"""This backend's own quantized operators: what a recipe makes of linear and convolution layers.

Between them travel *centred* codes: q - zero_point, whole numbers of at most nine bits held as
float32, so that BLAS can multiply them (see :mod:`.integer`) and padding is zero. Names begin with
``octavo.``; a saved model and the standalone runner know no others.
"""

from __future__ import annotations

import math
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
        self._requantizes = len(inputs) > self._OUTPUT_SCALE and bool(inputs[self._OUTPUT_SCALE])
        low, high = build.get("low", 0), build.get("high", 0)
        # A ReLU is a higher lower bound, and scales commute with it; other activations come before
        # the output's scale.
        lowest = max(low, 0) if self._activation == "Relu" else low
        self._low, self._high = np.float32(lowest), np.float32(high)
        self._scales_early = self._activation in ("", "Relu")

    def factors(self, x_scale: Any, w_scale: Array, bias: Any, y_scale: Any) -> tuple[Array, Any]:
        """Return what an exact sum is multiplied by, and what is added then."""
        scale = x_scale * w_scale
        if y_scale is None or not self._scales_early:
            return scale, bias
        return scale / y_scale, None if bias is None else bias / y_scale

    def __call__(self, y: Array, scale: Array, bias: Array | None, y_scale: Array | None) -> None:
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
    channels_at, depth_at = (0, 1) if transposed else (1, 0)

    def panel(kind: Any = np.float32) -> Array:
        integers = _centred(codes, zero_point, channels_at).astype(kind, copy=False)
        return integers.T if transposed else integers

    blocks = _blocks.get(codes, (transposed, largest), lambda: exact_blocks(panel(), largest))
    kind = carrier(codes.shape[depth_at], blocks)
    epilogue = _Epilogue(build)

    def product(a: Array, b: Array, out: Array) -> None:
        integer_product(a, b, blocks, out)

    def run(
        x: Any, x_scale: Any, w: Any, w_scale: Any, w_zero: Any = None, bias: Any = None, y_scale: Any = None,
        *, empty: Any,
    ) -> Array:  # fmt: skip
        # Kept as codes between runs: a quarter of the memory, and cheap beside the product.
        weight = panel(kind)
        is_per_row = x_scale.ndim > 0
        common = np.float32(1) if is_per_row else x_scale
        scale, shift = epilogue.factors(common, w_scale, bias, y_scale)
        out: Array = empty((*x.shape[:-1], weight.shape[1]), np.float32)

        def finish(y: Array, columns: slice) -> None:
            own_scale = scale[columns] if scale.ndim else scale
            own_shift = None if shift is None else shift[columns]
            epilogue(y, own_scale, own_shift, y_scale)

        rows, flat = x.reshape(-1, x.shape[-1]), out.reshape(-1, weight.shape[1])
        if not is_per_row:
            product_pieces(rows, weight, flat, build.threads, product, finish)
            return out
        row_scale = x_scale.reshape(-1, 1)

        def finish_rows(y: Array, columns: slice) -> None:
            y *= row_scale
            finish(y, columns)

        # Scales per row belong to whole rows: one thread at a time then, over all of them.
        product_pieces(rows, weight, flat, 1, product, finish_rows)
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
    *kernel, per_group, channels = codes.shape
    geometry = Geometry.read(build, tuple(kernel))
    largest = build.get("largest", 255)

    def panel(kind: Any = np.float32) -> Array:
        return grouped_panel(_centred(codes, zero_point, -1).astype(kind, copy=False), groups)

    blocks = _blocks.get(codes, (groups, largest), lambda: exact_blocks(panel(), largest))
    kind = carrier(math.prod(kernel) * per_group, blocks)
    epilogue = _Epilogue(build)
    is_depthwise = per_group == 1 and groups == channels and len(blocks) == 2

    def run(
        x: Any, x_scale: Any, w: Any, w_scale: Any, w_zero: Any = None, bias: Any = None, y_scale: Any = None,
        *, empty: Any,
    ) -> Array:  # fmt: skip
        scale, shift = epilogue.factors(x_scale, w_scale, bias, y_scale)

        def finish(y: Array) -> None:
            epilogue(y, scale, shift, y_scale)

        how = Run(finish, build.scratch, build.threads, empty)
        if is_depthwise:
            return depthwise(x, _centred(codes, zero_point, -1)[..., 0, :], geometry, how)
        weight = panel(kind)

        def product(rows: Array, out: Array) -> None:
            integer_product(rows, weight, blocks, out)

        return convolve(x, geometry, channels, groups, product, how)

    return run
