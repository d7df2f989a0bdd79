"""A content digest of a graph: nodes with whole attributes, bodies of control flow, all bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from onnx_ir import AttributeType, Graph, Model, Node, to_proto

from octavo.core.values.json_form import canonical_json

from .content import content

Piece = bytes | memoryview
"""What goes into a digest at once."""


def digest(model: Model) -> str:
    """Return a content digest of a graph, 16 hex digits, the same in any process."""
    found = hashlib.sha256()
    for piece in _graph_pieces(model.graph):
        # The length goes first, so that no two lists of pieces run into one another.
        length = len(piece)
        found.update(length.to_bytes(8, "little"))
        found.update(piece)
    whole = found.hexdigest()
    return whole[:16]


def _graph_pieces(graph: Graph) -> Iterator[Piece]:
    declared = []
    for value in (*graph.inputs, *graph.outputs):
        kind = str(value.dtype)
        shape = str(value.shape)
        declared.append([value.name, kind, shape])
    yield _encoded(declared)
    # The order in which tensors are registered says nothing about what a model computes.
    for name, value in sorted(graph.initializers.items()):
        tensor = value.const_value
        if tensor is not None:
            kind = str(tensor.dtype)
            lengths = tensor.shape.numpy()
            yield _encoded([name, kind, list(lengths)])
            yield content(tensor)
    for node in graph:
        yield from _node_pieces(node)


def _node_pieces(node: Node) -> Iterator[Piece]:
    inputs = []
    for value in node.inputs:
        name = "" if value is None else value.name
        inputs.append(name)
    outputs = [value.name for value in node.outputs]
    yield _encoded([node.domain, node.op_type, node.name, inputs, outputs])
    for key, attribute in sorted(node.attributes.items()):
        kind = attribute.type
        bodies: Sequence[Graph] = ()
        if kind == AttributeType.GRAPH:
            bodies = [attribute.as_graph()]
        elif kind == AttributeType.GRAPHS:
            bodies = attribute.as_graphs()
        else:
            message = to_proto(attribute)
            yield message.SerializeToString(deterministic=True)
        for body in bodies:
            yield key.encode()
            yield from _graph_pieces(body)


def _encoded(told: Sequence[object]) -> bytes:
    text = canonical_json(told)
    return text.encode()
