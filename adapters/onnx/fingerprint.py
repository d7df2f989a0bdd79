"""A content digest of a graph: nodes with whole attributes, bodies of control flow, and every tensor's bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import onnx_ir as ir

from octavo.adapters.onnx.apply.packing import content
from octavo.core.values.json_form import canonical_json


def digest(model: ir.Model) -> str:
    """Return a content digest of a graph and its tensors, 16 hex digits, the same in any process."""
    found = hashlib.sha256()
    for piece in _graph(model.graph):
        found.update(
            len(piece).to_bytes(8, "little")
        )  # so that no two lists of pieces run into one another
        found.update(piece)
    return found.hexdigest()[:16]


def _graph(graph: ir.Graph) -> Iterator[bytes | memoryview]:
    yield canonical_json(
        [[v.name, str(v.dtype), str(v.shape)] for v in (*graph.inputs, *graph.outputs)]
    ).encode()
    for name, value in sorted(graph.initializers.items()):
        if value.const_value is not None:
            yield canonical_json(
                [name, str(value.const_value.dtype), list(value.const_value.shape.numpy())]
            ).encode()
            yield content(value.const_value)
    for node in graph:
        inputs = [v.name if v is not None else "" for v in node.inputs]
        yield canonical_json(
            [node.domain, node.op_type, node.name, inputs, [v.name for v in node.outputs]]
        ).encode()
        for name, attribute in sorted(node.attributes.items()):
            if attribute.type == ir.AttributeType.GRAPH:
                yield name.encode()
                yield from _graph(attribute.as_graph())
            elif attribute.type == ir.AttributeType.GRAPHS:
                for body in attribute.as_graphs():
                    yield name.encode()
                    yield from _graph(body)
            else:
                yield ir.to_proto(attribute).SerializeToString(deterministic=True)
