"""A model file, written tensor by tensor: no second copy of the weights is made on the way.

One canonical protobuf message, as ``SerializeToString`` would give it but for the order of its
fields: length-delimited fields (tag, length, content;
https://protobuf.dev/programming-guides/encoding) are laid down one after the other.
"""

from __future__ import annotations

from pathlib import Path

from onnx import GraphProto, ModelProto, TensorProto
from onnx_ir import Model

from .content import content
from .message import Held, skeleton

_GRAPH = ModelProto.DESCRIPTOR.fields_by_name["graph"].number
_INITIALIZER = GraphProto.DESCRIPTOR.fields_by_name["initializer"].number
_RAW_DATA = TensorProto.DESCRIPTOR.fields_by_name["raw_data"].number

_LENGTH_DELIMITED = 2
"""The wire type of bytes, strings and messages, in the low three bits of a tag."""


def write(model: Model, path: Path) -> None:
    """Write a model of less than 2 GB as one file. The model is as before afterwards."""
    proto, held = skeleton(model)
    heads = _take_heads(proto.graph, held)
    rest_of_graph = proto.graph.SerializeToString(deterministic=True)
    total = len(rest_of_graph)
    fields: dict[str, bytes] = {}
    for name, head in heads.items():
        size = len(head) + held[name].nbytes
        field = _field(_INITIALIZER, size)
        fields[name] = field
        total += len(field) + size
    proto.ClearField("graph")
    around = proto.SerializeToString(deterministic=True)
    with path.open("wb") as file:
        file.write(around)
        file.write(_field(_GRAPH, total))
        file.write(rest_of_graph)
        for name, head in heads.items():
            file.write(fields[name])
            file.write(head)
            file.write(content(held[name]))


def _take_heads(graph: GraphProto, held: Held) -> dict[str, bytes]:
    """Take the placeholders out of a graph; return each one's message up to its first byte."""
    heads: dict[str, bytes] = {}
    small = []
    for tensor in graph.initializer:
        name = tensor.name
        if name not in held:
            small.append(tensor)
            continue
        head = TensorProto(name=name, data_type=tensor.data_type, dims=tensor.dims)
        begun = head.SerializeToString(deterministic=True)
        size = held[name].nbytes
        heads[name] = begun + _field(_RAW_DATA, size)
    del graph.initializer[:]
    graph.initializer.extend(small)
    return heads


def _field(number: int, length: int) -> bytes:
    """The tag of a length-delimited field, and how long it is."""
    tag = number << 3 | _LENGTH_DELIMITED
    return _varint(tag) + _varint(length)


def _varint(number: int) -> bytes:
    # Seven bits a byte, the lowest first; the eighth says that another byte follows.
    groups = []
    while number > 0x7F:
        group = number & 0x7F
        groups.append(group | 0x80)
        number >>= 7
    return bytes([*groups, number])
