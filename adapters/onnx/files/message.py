"""A model as a protobuf message whose large tensors are left out, to be lent or written apart."""

from __future__ import annotations

from collections.abc import Iterable

import onnx
import onnx_ir as ir

_LEFT_OUT_FROM = 1024
"""Bytes from which a tensor is lent to the runtime and not copied into the serialized graph."""


def skeleton(model: ir.Model) -> tuple[onnx.ModelProto, dict[str, ir.TensorProtocol]]:
    """Serialize a graph with its large tensors left out; return both.

    The model is as before afterwards.
    """
    initializers = model.graph.initializers
    held = large_tensors(initializers.values())
    try:
        # The model itself is changed for a while: a clone would take its time for every candidate.
        for name, tensor in held.items():
            initializers[name].const_value = placeholder(tensor, name)
        return ir.to_proto(model), held
    finally:
        for name, tensor in held.items():
            initializers[name].const_value = tensor


def refill(model: ir.Model, held: dict[str, ir.TensorProtocol]) -> None:
    """Give a model made from a :func:`skeleton` its large tensors back, where it still has them."""
    for name, tensor in held.items():
        if name in model.graph.initializers:
            model.graph.initializers[name].const_value = tensor


def large_tensors(initializers: Iterable[ir.Value]) -> dict[str, ir.TensorProtocol]:
    """Return the tensors that a skeleton leaves out, by name."""
    found: dict[str, ir.TensorProtocol] = {}
    for value in initializers:
        tensor = value.const_value
        # ONNX Runtime drops what nobody reads, and would then miss what was lent for it.
        if tensor is None or not value.uses():
            continue
        if tensor.nbytes >= _LEFT_OUT_FROM and _is_lendable(tensor.dtype):
            found[value.name or ""] = tensor
    return found


def placeholder(tensor: ir.TensorProtocol, name: str) -> ir.ExternalTensor:
    """Return what stands in a message for a tensor that is left out of it."""
    shape = ir.Shape(tensor.shape.numpy())
    return ir.ExternalTensor(
        "elsewhere", 0, tensor.nbytes, tensor.dtype, shape=shape, name=name
    )


def _is_lendable(dtype: ir.DataType) -> bool:
    """True for types that an OrtValue can be made of from outside.

    Neither strings nor several numbers to a byte.
    """
    return dtype != ir.DataType.STRING and dtype.bitwidth >= 8
