"""Function-preserving rewrites of a float graph.

Constants folded, batch norm folded, activations fused, names kept.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from octavo.adapters.numpy.graph import Array, Graph, Node
from octavo.adapters.numpy.kernels import ACTIVATIONS

from .batch_norm import fold_batch_norm
from .constants import fold_constants
from .fusion import fuse_attention, fuse_gelu


def optimised(graph: Graph) -> Graph:
    """Return the graph as the ops of the tuning space see it."""
    for rewrite in (
        fold_constants,
        drop_identities,
        fold_batch_norm,
        linear_layers,
        fuse_gelu,
        # What a fused pattern leaves unread counts as a reader until it is gone.
        drop_unused,
        fuse_attention,
        drop_unused,
        fuse_activations,
    ):
        graph = rewrite(graph)
    return graph.check()


def drop_identities(graph: Graph) -> Graph:
    """Take out Identity nodes whose value is not an output of the graph."""
    other: dict[str, str] = {}
    nodes = []
    for node in graph.nodes:
        if node.op == "Identity" and node.outputs[0] not in graph.outputs:
            source = node.inputs[0]
            other[node.outputs[0]] = other.get(source, source)
        else:
            nodes.append(node)
    # A body reads values around it by name, in nodes that are not looked at here.
    if not other or any(node.bodies() for node in nodes):
        return graph
    renamed = []
    for node in nodes:
        inputs = tuple(other.get(v, v) for v in node.inputs)
        renamed.append(node.with_(inputs=inputs))
    return graph.with_(nodes=tuple(renamed))


def linear_layers(graph: Graph) -> Graph:
    """Write MatMul with a constant matrix, and a bias's Add behind it, as one Gemm.

    That is the linear layer which both are.
    """
    consumers = graph.consumers()
    changed: dict[str, Node | None] = {}
    for node in graph.nodes:
        if node.op != "MatMul":
            continue
        weight = graph.initializers.get(node.inputs[1])
        if weight is None or weight.ndim != 2:
            continue
        gemm = node.with_(op="Gemm")
        add = _only_reader(graph, consumers, node)
        bias = _bias_of(graph, add, node.outputs[0], weight.shape[1])
        if add is not None and bias:
            gemm = gemm.with_(inputs=(*node.inputs, bias), outputs=add.outputs)
            changed[add.name] = None
        changed[node.name] = gemm
    return graph.replaced(changed)


def _only_reader(
    graph: Graph, consumers: Mapping[str, list[Node]], node: Node
) -> Node | None:
    """Return the one node that reads a node's value, if the value does not leave the graph."""
    value = node.outputs[0]
    readers = consumers.get(value, [])
    return readers[0] if len(readers) == 1 and value not in graph.outputs else None


def _bias_of(graph: Graph, add: Node | None, value: str, width: int) -> str:
    """Return the vector that an Add adds to a value, or ''."""
    if add is None or add.op != "Add":
        return ""
    other = add.inputs[1] if add.inputs[0] == value else add.inputs[0]
    bias = graph.initializers.get(other)
    return other if bias is not None and bias.shape == (width,) else ""


def fuse_activations(graph: Graph) -> Graph:
    """Fuse an activation into the convolution or Gemm before it."""
    consumers, producers = graph.consumers(), graph.producers()
    changed: dict[str, Node | None] = {}
    for node in graph.nodes:
        activation = _activation_of(node)
        if activation not in ACTIVATIONS:
            continue
        before = producers.get(node.inputs[0])
        if (
            before is None
            or before.op not in ("Conv", "Gemm")
            or before.get("activation", "")
        ):
            continue
        weight = graph.initializers.get(before.inputs[1])
        if _only_reader(graph, consumers, before) is node and _is_fusible(
            activation, weight
        ):
            attributes = {**before.attributes, "activation": activation}
            changed[before.name] = before.with_(
                outputs=node.outputs, attributes=attributes
            )
            changed[node.name] = None
    return graph.replaced(changed)


def _activation_of(node: Node) -> str:
    """Return what a node is called as a fused activation, if it is one."""
    is_approximate = node.op == "Gelu" and node.get("approximate", "none") == "tanh"
    return "GeluTanh" if is_approximate else node.op


def _is_fusible(activation: str, weight: Array | None) -> bool:
    """True if an activation can be fused: all but ReLU are written for float32 alone."""
    return activation == "Relu" or (weight is not None and weight.dtype == np.float32)


def drop_unused(graph: Graph) -> Graph:
    """Take out nodes and initializers that no output depends on."""
    wanted = set(graph.outputs)
    kept: list[Node] = []
    for node in reversed(graph.nodes):
        if wanted & set(node.outputs):
            wanted.update(graph.reads(node))
            kept.append(node)
    initializers = {k: v for k, v in graph.initializers.items() if k in wanted}
    return graph.with_(nodes=tuple(reversed(kept)), initializers=initializers)
