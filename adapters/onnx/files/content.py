"""The bytes of a tensor as they lie in memory."""

from __future__ import annotations

import sys

import numpy as np
import onnx_ir as ir

from octavo.core.values.json_form import canonical_json


def content(tensor: ir.TensorProtocol) -> bytes | memoryview:
    """Return a tensor's bytes, without a copy where they lie in memory as they are."""
    if tensor.dtype == ir.DataType.STRING:
        flat = tensor.numpy().ravel()
        # Every byte is a letter of Latin-1, so any string can be told.
        strings = [bytes(s).decode("latin-1") for s in flat]
        text = canonical_json(strings)
        return text.encode()
    array = tensor.numpy()
    is_packed = tensor.dtype.bitwidth < 8
    is_contiguous = array.flags.c_contiguous
    # ONNX stores raw data in little-endian order, whatever the processor's own is.
    if is_packed or not is_contiguous or sys.byteorder != "little":
        return tensor.tobytes()
    as_bytes = array.reshape(-1).view(np.uint8)
    return as_bytes.data
