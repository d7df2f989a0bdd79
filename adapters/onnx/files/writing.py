"""A model file, written tensor by tensor: no second copy of the weights is made on the way.

One canonical protobuf message, as ``SerializeToString`` would give it but for the order of its
fields: length-delimited fields (tag, length, content;
https://protobuf.dev/programming-guides/encoding) are laid down one after the other.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir

from .content import content
from .message import skeleton

_GRAPH = onnx.ModelProto.DESCRIPTOR.fields_by_name["graph"].number
_INITIALIZER = onnx.GraphProto.DESCRIPTOR.fields_by_name["initializer"].number
_RAW_DATA = onnx.TensorProto.DESCRIPTOR.fields_by_name["raw_data"].number

_LENGTH_DELIMITED = 2
"""The wire type of bytes, strings and messages, in the low three bits of a tag."""


def write(model: ir.Model, path: Path) -> None:
    """Write a model of less than 2 GB as one file. The model is as before afterwards."""
    proto, held = skeleton(model)
    heads = _take_heads(proto.graph, held)
    rest_of_graph = proto.graph.SerializeToString(deterministic=True)
    total = len(rest_of_graph)
    fields: dict[str, bytes] = {}
    for name, head in heads.items():
        size = len(head) + held[name].nbytes
        fields[name] = _field(_INITIALIZER, size)
        total += len(fields[name]) + size
    proto.ClearField("graph")
    with path.open("wb") as file:
        file.write(proto.SerializeToString(deterministic=True))
        file.write(_field(_GRAPH, total))
        file.write(rest_of_graph)
        for name, head in heads.items():
            file.write(fields[name])
            file.write(head)
            file.write(content(held[name]))


def _take_heads(
    graph: onnx.GraphProto, held: dict[str, ir.TensorProtocol]
) -> dict[str, bytes]:
    """Take the placeholders out of a graph; return each one's message up to its first byte."""
    heads: dict[str, bytes] = {}
    small = []
    for tensor in graph.initializer:
        if tensor.name not in held:
            small.append(tensor)
            continue
        head = onnx.TensorProto(
            name=tensor.name, data_type=tensor.data_type, dims=tensor.dims
        )
        begun = head.SerializeToString(deterministic=True)
        size = held[tensor.name].nbytes
        heads[tensor.name] = begun + _field(_RAW_DATA, size)
    del graph.initializer[:]
    graph.initializer.extend(small)
    return heads


def _field(number: int, length: int) -> bytes:
    """The tag of a length-delimited field, and how long it is."""
    return _varint(number << 3 | _LENGTH_DELIMITED) + _varint(length)


def _varint(number: int) -> bytes:
    # Seven bits a byte, the lowest first; the eighth says that another byte follows.
    groups = []
    while number > 0x7F:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*groups, number])
