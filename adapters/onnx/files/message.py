"""A model as a protobuf message whose large tensors are left out, to be lent or written apart."""

from __future__ import annotations

from collections.abc import Iterable

import onnx
import onnx_ir as ir
from onnx_ir import DataType, Model, TensorProtocol, Value

_LEFT_OUT_FROM = 1024
"""Bytes from which a tensor is lent to the runtime and not copied into the serialized graph."""


Held = dict[str, TensorProtocol]
"""Name of an initializer -> its tensor, which is left out of a message."""


def skeleton(model: Model) -> tuple[onnx.ModelProto, Held]:
    """Serialize a graph with its large tensors left out; return both.

    The model is as before afterwards.
    """
    initializers = model.graph.initializers
    held = large_tensors(initializers.values())
    try:
        # The model itself is changed for a while: a clone would take its time for every candidate.
        for name, tensor in held.items():
            initializers[name].const_value = placeholder(tensor, name)
        proto = ir.to_proto(model)
        return proto, held
    finally:
        for name, tensor in held.items():
            initializers[name].const_value = tensor


def refill(model: Model, held: Held) -> None:
    """Give a model made from a :func:`skeleton` its large tensors back, where it still has them."""
    initializers = model.graph.initializers
    for name, tensor in held.items():
        if name in initializers:
            initializers[name].const_value = tensor


def large_tensors(initializers: Iterable[Value]) -> Held:
    """Return the tensors that a skeleton leaves out, by name."""
    found: Held = {}
    for value in initializers:
        tensor = value.const_value
        # ONNX Runtime drops what nobody reads, and would then miss what was lent for it.
        if tensor is None or not value.uses():
            continue
        is_large = tensor.nbytes >= _LEFT_OUT_FROM
        if is_large and _is_lendable(tensor.dtype):
            found[value.name or ""] = tensor
    return found


def placeholder(tensor: TensorProtocol, name: str) -> ir.ExternalTensor:
    """Return what stands in a message for a tensor that is left out of it."""
    lengths = tensor.shape.numpy()
    shape = ir.Shape(lengths)
    size = tensor.nbytes
    return ir.ExternalTensor("elsewhere", 0, size, tensor.dtype, shape=shape, name=name)


def _is_lendable(dtype: DataType) -> bool:
    """True for types that an OrtValue can be made of from outside.

    Neither strings nor several numbers to a byte.
    """
    if dtype == DataType.STRING:
        return False
    return dtype.bitwidth >= 8
