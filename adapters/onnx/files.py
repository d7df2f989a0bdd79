"""A model file, written tensor by tensor: no second copy of the weights is made on the way.

One canonical protobuf message, as ``SerializeToString`` would give it but for the order of its fields: length-delimited
fields (tag, length, content; https://protobuf.dev/programming-guides/encoding) are laid down one after the other.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir

from octavo.adapters.onnx.apply.packing import content

from .run import skeleton

_GRAPH = onnx.ModelProto.DESCRIPTOR.fields_by_name["graph"].number
_INITIALIZER = onnx.GraphProto.DESCRIPTOR.fields_by_name["initializer"].number
_RAW_DATA = onnx.TensorProto.DESCRIPTOR.fields_by_name["raw_data"].number


def write(model: ir.Model, path: Path) -> None:
    """Write a model of less than 2 GB as one file. The model is as before afterwards."""
    proto, held = skeleton(model)
    small = [t for t in proto.graph.initializer if t.name not in held]
    heads = {
        t.name: onnx.TensorProto(name=t.name, data_type=t.data_type, dims=t.dims)
        for t in proto.graph.initializer
        if t.name in held
    }
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(small)
    tensors = {
        name: head.SerializeToString(deterministic=True) + _field(_RAW_DATA, held[name].nbytes)
        for name, head in heads.items()
    }
    sizes = {name: len(head) + held[name].nbytes for name, head in tensors.items()}
    begun = proto.graph.SerializeToString(deterministic=True)
    total = len(begun) + sum(len(_field(_INITIALIZER, size)) + size for size in sizes.values())
    proto.ClearField("graph")
    with path.open("wb") as file:
        file.write(proto.SerializeToString(deterministic=True) + _field(_GRAPH, total) + begun)
        for name, head in tensors.items():
            file.write(_field(_INITIALIZER, sizes[name]) + head)
            file.write(content(held[name]))


def _field(number: int, length: int) -> bytes:
    """The tag of a length-delimited field, and how long it is."""
    return _varint(number << 3 | 2) + _varint(length)


def _varint(number: int) -> bytes:
    groups = []
    while number > 0x7F:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*groups, number])
