"""A content digest of a graph: nodes with whole attributes, bodies of control flow, all bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import onnx_ir as ir

from octavo.core.values.json_form import canonical_json

from .content import content


def digest(model: ir.Model) -> str:
    """Return a content digest of a graph, 16 hex digits, the same in any process."""
    found = hashlib.sha256()
    for piece in _graph_pieces(model.graph):
        # The length goes first, so that no two lists of pieces run into one another.
        found.update(len(piece).to_bytes(8, "little"))
        found.update(piece)
    return found.hexdigest()[:16]


def _graph_pieces(graph: ir.Graph) -> Iterator[bytes | memoryview]:
    ends = (*graph.inputs, *graph.outputs)
    declared = [[value.name, str(value.dtype), str(value.shape)] for value in ends]
    yield canonical_json(declared).encode()
    for name, value in sorted(graph.initializers.items()):
        tensor = value.const_value
        if tensor is not None:
            head = [name, str(tensor.dtype), list(tensor.shape.numpy())]
            yield canonical_json(head).encode()
            yield content(tensor)
    for node in graph:
        yield from _node_pieces(node)


def _node_pieces(node: ir.Node) -> Iterator[bytes | memoryview]:
    inputs = [v.name if v is not None else "" for v in node.inputs]
    outputs = [v.name for v in node.outputs]
    told = [node.domain, node.op_type, node.name, inputs, outputs]
    yield canonical_json(told).encode()
    for name, attribute in sorted(node.attributes.items()):
        bodies: Sequence[ir.Graph] = ()
        if attribute.type == ir.AttributeType.GRAPH:
            bodies = [attribute.as_graph()]
        elif attribute.type == ir.AttributeType.GRAPHS:
            bodies = attribute.as_graphs()
        else:
            yield ir.to_proto(attribute).SerializeToString(deterministic=True)
        for body in bodies:
            yield name.encode()
            yield from _graph_pieces(body)
