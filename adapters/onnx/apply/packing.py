"""From a QuantizedTensor to the tensors that an ONNX graph holds; packed once per QuantizedTensor object."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from octavo.core.errors import SchemeError
from octavo.core.numerics.affine import QuantParams
from octavo.core.numerics.tensor import QuantizedTensor
from octavo.core.values.json_form import canonical_json

_packed: weakref.WeakKeyDictionary[QuantizedTensor, dict[object, Any]] = weakref.WeakKeyDictionary()

_DTYPES = {
    "int2": ir.DataType.INT2, "uint2": ir.DataType.UINT2, "int4": ir.DataType.INT4, "uint4": ir.DataType.UINT4, "int8": ir.DataType.INT8,
    "uint8": ir.DataType.UINT8, "int16": ir.DataType.INT16, "uint16": ir.DataType.UINT16,
}  # fmt: skip


def cached(weight: QuantizedTensor, key: object, make: Callable[[], Any]) -> Any:
    """Return ``make()``, computed once for this object and key."""
    store = _packed.setdefault(weight, {})
    if key not in store:
        store[key] = make()
    return store[key]


def dtype_of(name: str) -> ir.DataType:
    """Return the ONNX type of a spec's dtype.

    Raises:
        SchemeError: If ONNX has none.
    """
    if name not in _DTYPES:
        raise SchemeError(f"ONNX has no tensor type for {name!r}; it takes {', '.join(_DTYPES)}")
    return _DTYPES[name]


def tensor(array: Any, dtype: ir.DataType, name: str) -> ir.TensorProtocol:
    """Return an array as an ONNX tensor of ``dtype``."""
    return ir.Tensor(np.asarray(array).astype(dtype.numpy(), order="C"), dtype=dtype, name=name)


def content(tensor: ir.TensorProtocol) -> bytes | memoryview:
    """Return a tensor's bytes, without a copy where they lie in memory as they are."""
    if tensor.dtype == ir.DataType.STRING:
        return canonical_json([bytes(s).decode("latin-1") for s in tensor.numpy().ravel()]).encode()
    array = tensor.numpy()
    if tensor.dtype.bitwidth < 8 or not array.flags.c_contiguous or sys.byteorder != "little":
        return tensor.tobytes()
    return array.reshape(-1).view(np.uint8).data


def weight_tensors(
    weight: QuantizedTensor, *, transposed: bool = False
) -> tuple[ir.TensorProtocol, ir.TensorProtocol, ir.TensorProtocol, int | None]:
    """Return (codes, scale, zero point, channel axis) of a per-tensor or per-channel weight.

    Args:
        weight: 8-bit or narrower.
        transposed: Swap the two axes of a matrix, for kernels that take it the other way round.
    """

    def make() -> tuple[ir.TensorProtocol, ir.TensorProtocol, ir.TensorProtocol, int | None]:
        dtype = dtype_of(weight.params.spec.dtype)
        codes, axis = np.asarray(weight.codes), weight.params.axis
        if transposed:
            codes, axis = codes.T, None if axis is None else 1 - axis
        scale = tensor(weight.params.scale, ir.DataType.FLOAT, "scale")
        return (
            tensor(codes, dtype, "codes"),
            scale,
            tensor(weight.params.zero_point, dtype, "zero_point"),
            axis,
        )

    found: tuple[ir.TensorProtocol, ir.TensorProtocol, ir.TensorProtocol, int | None] = cached(
        weight, ("affine", transposed), make
    )
    return found


def bias_tensors(
    bias: np.ndarray, weight: QuantizedTensor, x_scale: float
) -> tuple[ir.TensorProtocol, ir.TensorProtocol, QuantizedTensor]:
    """Return (int32 bias, its scale, the weight to use with it).

    The bias' scale must be the activation's times the weight's. Where a channel's weights are so small that its bias
    would not fit int32 at that scale, that channel's weight scale is enlarged and its codes are rounded again.
    """
    w_scale = np.asarray(weight.params.scale, np.float64)
    limit = 2.0**30
    needed = np.abs(bias.astype(np.float64)) / (limit * x_scale)
    if w_scale.ndim == 0:
        needed = needed.max(initial=0.0)
    if np.any(needed > w_scale):
        weight = cached(
            weight,
            ("enlarged", x_scale, bias.tobytes()),
            lambda: _enlarge(weight, np.maximum(w_scale, needed).astype(np.float32)),
        )
        w_scale = np.asarray(weight.params.scale, np.float64)
    scale = (w_scale * x_scale).astype(np.float32)
    codes = np.rint(bias.astype(np.float64) / scale.astype(np.float64))
    return (
        tensor(codes, ir.DataType.INT32, "bias"),
        tensor(scale, ir.DataType.FLOAT, "bias_scale"),
        weight,
    )


def _enlarge(weight: QuantizedTensor, scale: np.ndarray) -> QuantizedTensor:
    old, axis = weight.params, weight.params.axis
    codes = np.asarray(weight.codes).astype(np.float64)
    shape = [1] * codes.ndim
    if axis is not None:
        shape[axis] = -1
    ratio = (np.asarray(old.scale, np.float64) / scale).reshape(shape)
    zero = np.asarray(old.zero_point).reshape(shape)
    rounded = np.rint((codes - zero) * ratio) + zero
    return QuantizedTensor(
        rounded.astype(np.asarray(weight.codes).dtype),
        QuantParams(scale, old.zero_point, old.spec, axis),
        weight.extra,
    )
