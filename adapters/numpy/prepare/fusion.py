"""Patterns of several nodes that are one operation: GELU written out, attention written out."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from octavo.adapters.numpy.graph import Graph, Node


class _Finder:
    """Looks around a node."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.consumers = graph.consumers()
        self.producers = graph.producers()

    def scalar(self, name: str) -> float | None:
        """Return a constant of one element, or None."""
        array = self.graph.initializers.get(name)
        return (
            None
            if array is None or array.size != 1 or array.dtype.kind != "f"
            else float(array.reshape(()))
        )

    def only_reader(self, value: str) -> Node | None:
        """Return the one node that reads a value, if it does not leave the graph."""
        readers = self.consumers.get(value, [])
        return readers[0] if len(readers) == 1 and value not in self.graph.outputs else None

    def scaled(self, value: str) -> tuple[str, float]:
        """Return (x, c) where ``value`` is x * c for a constant c; (value, 1) where it is not."""
        node = self.producers.get(value)
        if node is not None and node.op in ("Mul", "Div"):
            for i in (0, 1) if node.op == "Mul" else (1,):
                c = self.scalar(node.inputs[i])
                if c is not None:
                    return node.inputs[1 - i], c if node.op == "Mul" else 1 / c
        return value, 1.0

    def other(self, node: Node, value: str) -> str:
        """Return the other input of a binary node."""
        return node.inputs[1] if node.inputs[0] == value else node.inputs[0]


def _near(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-5)


def _rewritten(graph: Graph, changed: Mapping[str, Node]) -> Graph:
    return (
        graph.with_(nodes=tuple(changed.get(n.name, n) for n in graph.nodes)) if changed else graph
    )


def fuse_gelu(graph: Graph) -> Graph:
    """x (1 + erf(x / sqrt(2))) / 2, in either order of its factors, becomes Gelu."""
    find = _Finder(graph)
    changed: dict[str, Node] = {}
    for node in graph.nodes:
        if node.op != "Erf":
            continue
        x, factor = find.scaled(node.inputs[0])
        add = find.only_reader(node.outputs[0])
        if (
            not _near(factor, math.sqrt(0.5))
            or add is None
            or add.op != "Add"
            or find.scalar(find.other(add, node.outputs[0])) != 1.0
        ):
            continue
        product = find.only_reader(add.outputs[0])
        if product is None or product.op != "Mul":
            continue
        other, share = find.scaled(find.other(product, add.outputs[0]))
        last = product
        if other == x and _near(share, 1.0):
            half = find.only_reader(product.outputs[0])
            if (
                half is None
                or half.op != "Mul"
                or find.scalar(find.other(half, product.outputs[0])) != 0.5
            ):
                continue
            last = half
        elif other != x or not _near(share, 0.5):
            continue
        changed[last.name] = last.with_(op="Gelu", inputs=(x,), attributes={})
    return _rewritten(graph, changed)


def fuse_attention(graph: Graph) -> Graph:
    """softmax(scale Q K^T + mask) V becomes one node, which never holds more than one sample's scores."""
    find = _Finder(graph)
    changed: dict[str, Node] = {}
    for node in graph.nodes:
        if node.op != "Softmax" or node.attributes.get("axis", -1) not in (-1, 3):
            continue
        product = find.only_reader(node.outputs[0])
        if (
            product is None
            or product.op != "MatMul"
            or product.inputs[0] != node.outputs[0]
            or graph.opset < 13
        ):
            continue
        value, mask = node.inputs[0], ""
        before = find.producers.get(value)
        if before is not None and before.op == "Add" and find.only_reader(value) is node:
            for i in (0, 1):
                inner, scale = find.scaled(before.inputs[i])
                source = find.producers.get(inner)
                if source is not None and source.op == "MatMul":
                    value, mask = before.inputs[i], before.inputs[1 - i]
                    break
        inner, scale = find.scaled(value)
        scores = find.producers.get(inner)
        if (
            scores is None
            or scores.op != "MatMul"
            or find.only_reader(inner) is None
            or find.only_reader(value) is None
        ):
            continue
        if any(v in graph.initializers for v in (*scores.inputs, product.inputs[1])) or (
            mask and not _plain_mask(graph, mask)
        ):
            continue
        inputs = (*scores.inputs, product.inputs[1], mask)
        changed[product.name] = product.with_(
            op="octavo.Attention", inputs=inputs, attributes={"scale": scale}
        )
    return _rewritten(graph, changed)


def _plain_mask(graph: Graph, mask: str) -> bool:
    array = graph.initializers.get(mask)
    return array is None or array.dtype == np.float32
