"""From an ONNX file to a float LiteRT flatbuffer: what convolution networks are made of."""

from __future__ import annotations

from pathlib import Path

from . import arithmetic, enlarging, images, normalizing, shapes
from .layout import Conversion
from .reading import Graph

WRITERS = {
    **images.WRITERS,
    **enlarging.WRITERS,
    **arithmetic.WRITERS,
    **normalizing.WRITERS,
    **shapes.WRITERS,
}
"""Kind of node -> what writes it."""


def converted(path: Path) -> bytes:
    """Return a float model of LiteRT that computes what an ONNX file does.

    Inputs and outputs keep their names, shapes and layout; tensors get the names of the nodes that
    make them. Batch normalization folds into the products before it, activations fuse with the
    operators before them.

    Args:
        path: An ONNX file; what is stored beside it is read too.

    Raises:
        ModelError: If it cannot be read, or holds a node that has no form in LiteRT; the message
            names it.
    """
    graph = Graph(path)
    state = Conversion(graph)
    for node, proto in graph.nodes():
        if node.kind not in WRITERS and node.kind != "Shape":
            known = all(name in graph.constants for name in node.inputs if name)
            if not known:
                raise node.refused(f"it has no form for {node.kind}")
        if not graph.met(node, proto):
            WRITERS[node.kind](state, node)
    outputs = {name: state.tensor(name) for name in graph.outputs}
    return state.builder.packed(state.inputs, outputs)
