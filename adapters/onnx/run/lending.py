"""Tensors of an onnx-ir model as OrtValues: lent to sessions, never copied."""

from __future__ import annotations

import weakref

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

_lent: weakref.WeakKeyDictionary[ir.TensorProtocol, ort.OrtValue] = (
    weakref.WeakKeyDictionary()
)

_OPAQUE = {
    ir.DataType.BFLOAT16: np.uint16,
    ir.DataType.FLOAT8E4M3FN: np.uint8,
    ir.DataType.FLOAT8E4M3FNUZ: np.uint8,
    ir.DataType.FLOAT8E5M2: np.uint8,
    ir.DataType.FLOAT8E5M2FNUZ: np.uint8,
}
"""Types that NumPy has no number for; the runtime takes their bytes."""


def lend(tensor: ir.TensorProtocol) -> ort.OrtValue:
    """Return a tensor as the runtime takes it, over the same memory; made once for each tensor."""
    # By tensor: candidates share the tensors of the float model, and so what is lent of them.
    found = _lent.get(tensor)
    if found is None:
        found = _ort_value(tensor)
        _lent[tensor] = found
    return found


def _ort_value(tensor: ir.TensorProtocol) -> ort.OrtValue:
    if tensor.dtype in _OPAQUE:
        element = _OPAQUE[tensor.dtype]
        flat = np.frombuffer(tensor.tobytes(), element)
        shaped = flat.reshape(tensor.shape.numpy())
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(
            shaped, tensor.dtype.value
        )
    array = np.ascontiguousarray(tensor.numpy())
    return ort.OrtValue.ortvalue_from_numpy(array)
