"""From a QuantizedTensor to the tensors that an ONNX graph holds, packed once per object."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
from onnx_ir import DataType

from octavo.core.authoring.integer_bias import integer_bias
from octavo.core.errors import SchemeError
from octavo.core.numerics.scales import held_by_float16
from octavo.core.numerics.tensor import QuantizedTensor

_packed: weakref.WeakKeyDictionary[QuantizedTensor, dict[object, Any]] = (
    weakref.WeakKeyDictionary()
)

_DTYPES = {
    "int2": DataType.INT2,
    "uint2": DataType.UINT2,
    "int4": DataType.INT4,
    "uint4": DataType.UINT4,
    "int8": DataType.INT8,
    "uint8": DataType.UINT8,
    "int16": DataType.INT16,
    "uint16": DataType.UINT16,
}


def cached(weight: QuantizedTensor, key: object, make: Callable[[], Any]) -> Any:
    """Return ``make()``, computed once for this object and key."""
    # Held weakly: what was packed goes with the quantized tensor.
    store = _packed.setdefault(weight, {})
    if key not in store:
        store[key] = make()
    return store[key]


def dtype_of(name: str) -> DataType:
    """Return the ONNX type of a spec's dtype.

    Raises:
        SchemeError: If ONNX has none.
    """
    if name not in _DTYPES:
        raise SchemeError(
            f"ONNX has no tensor type for {name!r}; it takes {', '.join(_DTYPES)}"
        )
    return _DTYPES[name]


def tensor(array: Any, dtype: DataType, name: str) -> ir.TensorProtocol:
    """Return an array as an ONNX tensor of ``dtype``."""
    held = np.asarray(array).astype(dtype.numpy(), order="C")
    return ir.Tensor(held, dtype=dtype, name=name)


class ScaleTensors(NamedTuple):
    """The scales of a weight as the file holds them.

    Attributes:
        stored: The scales in their own format; of two-level scales their uint8 codes.
        steps: Of two-level scales, what a code counts in each block, float32 (blocks,).
        offsets: Of two-level scales, what code 0 stands for in each block, float32 (blocks,).
        shape: What the kernel takes; the scales are broadcast to it. None where it is their own.
    """

    stored: ir.TensorProtocol
    steps: ir.TensorProtocol | None = None
    offsets: ir.TensorProtocol | None = None
    shape: tuple[int, ...] | None = None


_SCALES = {
    None: DataType.FLOAT,
    "float32": DataType.FLOAT,
    "float16": DataType.FLOAT16,
    "bfloat16": DataType.BFLOAT16,
}
"""A spec's ``scale_dtype`` -> the type of a tensor."""


def scale_tensors(weight: QuantizedTensor) -> ScaleTensors:
    """Return a weight's scales as its spec wants them stored; they are rounded to that already.

    Raises:
        SchemeError: If the file cannot hold scales of that format.
    """
    params = weight.params
    name = params.spec.scale_dtype
    if name == "float16" and not held_by_float16(params.scale):
        name = "bfloat16"
    if name in _SCALES:
        return ScaleTensors(tensor(params.scale, _SCALES[name], "scale"))
    second = weight.extra or {}
    if name != "uint8" or "scale_codes" not in second:
        raise SchemeError(
            f"an ONNX file cannot hold scales in {name!r}; it takes float32, float16, bfloat16 or "
            "uint8"
        )
    steps = second["scale_scale"]
    offsets = second["scale_offset"]
    return ScaleTensors(
        tensor(second["scale_codes"], DataType.UINT8, "scale"),
        tensor(steps, DataType.FLOAT, "scale_steps"),
        tensor(offsets, DataType.FLOAT, "scale_offsets"),
    )


class WeightTensors(NamedTuple):
    """A weight as tensors: codes, scale, zero point, and the axis that scales go along.

    Without a zero point it is 0.
    """

    codes: ir.TensorProtocol
    scale: ScaleTensors
    zero_point: ir.TensorProtocol | None
    axis: int | None


def zero_tensor(weight: QuantizedTensor) -> ir.TensorProtocol | None:
    """Return a weight's zero points; None where its spec says that they are 0."""
    params = weight.params
    spec = params.spec
    is_signed = not spec.dtype.startswith("u")
    if spec.symmetric and is_signed:
        return None
    return tensor(params.zero_point, dtype_of(spec.dtype), "zero_point")


def weight_tensors(
    weight: QuantizedTensor, *, transposed: bool = False
) -> WeightTensors:
    """Return a per-tensor or per-channel weight as tensors; made once.

    Args:
        weight: 8-bit or narrower.
        transposed: Swap the two axes of a matrix, for kernels that take it the other way round.
    """

    def make() -> WeightTensors:
        params = weight.params
        dtype = dtype_of(params.spec.dtype)
        codes = np.asarray(weight.codes)
        axis = params.axis
        if transposed:
            codes = codes.T
            axis = None if axis is None else 1 - axis
        return WeightTensors(
            tensor(codes, dtype, "codes"),
            scale_tensors(weight),
            zero_tensor(weight),
            axis,
        )

    found: WeightTensors = cached(weight, ("affine", transposed), make)
    return found


def bias_tensors(
    bias: np.ndarray, weight: QuantizedTensor, x_scale: float
) -> tuple[ir.TensorProtocol, ir.TensorProtocol, QuantizedTensor]:
    """Return (int32 bias, its scale, the weight to use with it).

    See :func:`~octavo.core.authoring.integer_bias.integer_bias`.
    """
    codes, scale, weight = integer_bias(bias, weight, x_scale)
    held = tensor(codes, DataType.INT32, "bias")
    return held, tensor(scale, DataType.FLOAT, "bias_scale"), weight
