"""A bias in whole numbers at the scale of integer products, for runtimes that add it to sums."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import numpy as np

from octavo.core.numerics.affine import QuantParams
from octavo.core.numerics.tensor import QuantizedTensor

_LIMIT = 2.0**30
"""Half of int32's range, so that the sums of products that a bias is added to have room."""

_ENLARGED: WeakKeyDictionary[
    QuantizedTensor, dict[tuple[float, bytes], QuantizedTensor]
] = WeakKeyDictionary()


def integer_bias(
    bias: np.ndarray, weight: QuantizedTensor, x_scale: float
) -> tuple[np.ndarray, np.ndarray, QuantizedTensor]:
    """Return a bias in whole numbers, their scale, and the weight to use with them.

    The bias' scale must be the activation's times the weight's (ONNX QLinearConv, LiteRT's 8-bit
    specification). Where a channel's weights are so small that its bias would not fit int32 at that
    scale, that channel's weight scale is enlarged and its codes are rounded again.

    Args:
        bias: Float, shape (channels,).
        weight: 8 bits or narrower, one scale or one for each channel.
        x_scale: Of the activation that the weight multiplies.

    Returns:
        Whole numbers (float64, to be stored as int32 or wider), their scale (float32, shape () or
        (channels,)), and ``weight`` itself or one with larger scales.
    """
    exact = np.asarray(bias, np.float64)
    weight = _with_room(weight, exact, x_scale)
    w_scale = np.asarray(weight.params.scale, np.float64)
    scale = (w_scale * x_scale).astype(np.float32)
    # Divided by the scale as it is stored, in float32, not by the one that it was rounded from.
    return np.rint(exact / scale.astype(np.float64)), scale, weight


def _with_room(
    weight: QuantizedTensor, bias: np.ndarray, x_scale: float
) -> QuantizedTensor:
    """Return a weight whose scales are large enough for a bias; the same one every time."""
    scale = np.asarray(weight.params.scale, np.float64)
    needed = np.abs(bias) / (_LIMIT * x_scale)
    if scale.ndim == 0:
        needed = needed.max(initial=0.0)
    if not np.any(needed > scale):
        return weight
    # Held weakly: what was made of it goes with the quantized tensor.
    made = _ENLARGED.setdefault(weight, {})
    key = (x_scale, bias.tobytes())
    if key not in made:
        made[key] = _enlarge(weight, np.maximum(scale, needed).astype(np.float32))
    return made[key]


def _enlarge(weight: QuantizedTensor, scale: np.ndarray) -> QuantizedTensor:
    """Return a weight's codes at other scales, which are no smaller."""
    old = weight.params
    codes = np.asarray(weight.codes)
    shape = [1] * codes.ndim
    if old.axis is not None:
        shape[old.axis] = -1
    ratio = np.asarray(old.scale, np.float64) / scale
    zero = np.asarray(old.zero_point).reshape(shape)
    steps = codes.astype(np.float64) - zero
    rounded = np.rint(steps * ratio.reshape(shape)) + zero
    params = QuantParams(scale, old.zero_point, old.spec, old.axis)
    return QuantizedTensor(rounded.astype(codes.dtype), params, weight.extra)
