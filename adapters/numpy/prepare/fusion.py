"""Patterns of several nodes that are one operation: GELU written out, attention written out."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from octavo.adapters.numpy.graph import Graph, Node


class _Finder:
    """Looks around a node."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._consumers = graph.consumers()
        self._producers = graph.producers()

    def scalar(self, name: str) -> float | None:
        """Return a floating constant of one element, or None."""
        array = self.graph.initializers.get(name)
        if array is None or array.size != 1 or array.dtype.kind != "f":
            return None
        return float(array.reshape(()))

    def producer(self, value: str, op: str) -> Node | None:
        """Return the node that writes a value, if it is one of that operator."""
        node = self._producers.get(value)
        if node is None or node.op != op:
            return None
        return node

    def only_reader(self, value: str, op: str = "") -> Node | None:
        """Return the one node that reads a value, if the value does not leave the graph.

        With ``op``, only if it is one of that operator.
        """
        readers = self._consumers.get(value, [])
        if len(readers) != 1 or value in self.graph.outputs:
            return None
        reader = readers[0]
        return reader if op in ("", reader.op) else None

    def scaled(self, value: str) -> tuple[str, float]:
        """Return (x, c) where ``value`` is x * c for a constant c; (value, 1) where it is not."""
        product = self.producer(value, "Mul")
        if product is not None:
            for i in (0, 1):
                factor = self.scalar(product.inputs[i])
                if factor is not None:
                    return product.inputs[1 - i], factor
        quotient = self.producer(value, "Div")
        if quotient is not None:
            divisor = self.scalar(quotient.inputs[1])
            if divisor is not None:
                return quotient.inputs[0], 1 / divisor
        return value, 1.0


def _other(node: Node, value: str) -> str:
    """Return the other input of a binary node."""
    return node.inputs[1] if node.inputs[0] == value else node.inputs[0]


def _near(a: float, b: float) -> bool:
    # Exporters write these constants in float32 or half precision, or as quotients.
    return math.isclose(a, b, rel_tol=1e-5)


def fuse_gelu(graph: Graph) -> Graph:
    """x (1 + erf(x / sqrt(2))) / 2, in either order of its factors, becomes Gelu."""
    find = _Finder(graph)
    changed: dict[str, Node | None] = {}
    for node in graph.nodes:
        if node.op != "Erf":
            continue
        x, factor = find.scaled(node.inputs[0])
        if not _near(factor, math.sqrt(0.5)):
            continue
        last = _end_of_gelu(find, node, x)
        if last is not None:
            changed[last.name] = last.with_(op="Gelu", inputs=(x,), attributes={})
    return graph.replaced(changed)


def _end_of_gelu(find: _Finder, erf: Node, x: str) -> Node | None:
    """Return the last node of a GELU of ``x`` whose error function is ``erf``, or None."""
    add = find.only_reader(erf.outputs[0], "Add")
    if add is None or find.scalar(_other(add, erf.outputs[0])) != 1.0:
        return None
    product = find.only_reader(add.outputs[0], "Mul")
    if product is None:
        return None
    factor, share = find.scaled(_other(product, add.outputs[0]))
    if factor != x:
        return None
    if _near(share, 0.5):
        return product
    if not _near(share, 1.0):
        return None
    # The half comes after the product.
    half = find.only_reader(product.outputs[0], "Mul")
    if half is None or find.scalar(_other(half, product.outputs[0])) != 0.5:
        return None
    return half


class _Attention(NamedTuple):
    """softmax(scale Q K^T + mask) V.

    Attributes:
        end: The node that writes it.
        inputs: Q, K^T, V and the mask, '' where there is none.
        scale: Of the products.
    """

    end: Node
    inputs: tuple[str, str, str, str]
    scale: float


def fuse_attention(graph: Graph) -> Graph:
    """softmax(scale Q K^T + mask) V becomes one node.

    That never holds more than one sample's scores.
    """
    # Softmax before operator set 13 goes over all trailing axes.
    if graph.opset < 13:
        return graph
    find = _Finder(graph)
    changed: dict[str, Node | None] = {}
    for node in graph.nodes:
        if node.op != "Softmax":
            continue
        found = _attention_of(find, node)
        if found is not None:
            attributes = {"scale": found.scale}
            changed[found.end.name] = found.end.with_(
                op="octavo.Attention", inputs=found.inputs, attributes=attributes
            )
    return graph.replaced(changed)


def _attention_of(find: _Finder, softmax: Node) -> _Attention | None:
    """Return the attention around a softmax, or None."""
    weights = softmax.outputs[0]
    end = find.only_reader(weights, "MatMul")
    is_last_axis = softmax.get("axis", -1) in (-1, 3)
    if not is_last_axis or end is None or end.inputs[0] != weights:
        return None
    value, mask = _without_mask(find, softmax)
    inner, scale = find.scaled(value)
    scores = find.producer(inner, "MatMul")
    if scores is None or not find.only_reader(inner) or not find.only_reader(value):
        return None
    q, k = scores.inputs
    v = end.inputs[1]
    # A product with a constant is a linear layer.
    constants = find.graph.initializers
    if q in constants or k in constants or v in constants:
        return None
    if mask in constants and constants[mask].dtype != np.float32:
        return None
    return _Attention(end, (q, k, v, mask), scale)


def _without_mask(find: _Finder, softmax: Node) -> tuple[str, str]:
    """Return (scores, mask) of what goes into a softmax; mask '' where there is none."""
    value = softmax.inputs[0]
    add = find.producer(value, "Add")
    if add is None or find.only_reader(value) is not softmax:
        return value, ""
    for i in (0, 1):
        inner, _ = find.scaled(add.inputs[i])
        if find.producer(inner, "MatMul") is not None:
            return add.inputs[i], add.inputs[1 - i]
    return value, ""
