"""Gelu, where a file writes it out by the error function, for which LiteRT has no operator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import helper, numpy_helper


class _Net:
    """Who makes a value, and who reads it."""

    def __init__(self, graph: Any) -> None:
        self.makers = {name: node for node in graph.node for name in node.output}
        self.readers: dict[str, list[Any]] = {
            output.name: [] for output in graph.output
        }
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.ends = {output.name for output in graph.output}
        self.stored = {one.name: one for one in graph.initializer}

    def number(self, name: str) -> float:
        """Return a constant of one element; NaN for anything else."""
        tensor = self.stored.get(name)
        maker = self.makers.get(name)
        if maker is not None and maker.op_type == "Constant":
            tensor = helper.get_attribute_value(maker.attribute[0])
        if tensor is None or not hasattr(tensor, "dims") or math.prod(tensor.dims) != 1:
            return math.nan
        return float(np.ravel(numpy_helper.to_array(tensor))[0])

    def beside(self, node: Any, kind: str, number: float) -> str:
        """Return what a node computes with a certain number; '' if it is another node."""
        if node is None or node.op_type != kind:
            return ""
        for value, constant in (node.input, reversed(node.input)):
            if math.isclose(self.number(constant), number, rel_tol=1e-4):
                return str(value)
        return ""

    def reader(self, name: str) -> Any:
        """Return the one node that reads a value; None where there are others."""
        found = self.readers.get(name, [])
        return found[0] if len(found) == 1 and name not in self.ends else None


def with_gelus(graph: Any) -> Sequence[Any]:
    """Return a graph's nodes, ``x (1 + erf(x / sqrt 2)) / 2`` as Gelu nodes."""
    net = _Net(graph)
    instead: dict[int, Any] = {}
    gone: set[int] = set()
    for node in graph.node:
        found = _gelu(net, node) if node.op_type == "Erf" else None
        if found is not None:
            x, last, inner = found
            instead[id(last)] = helper.make_node(
                "Gelu", [x], [last.output[0]], name=node.name or last.name
            )
            gone.update(id(one) for one in inner)
    kept = [node for node in graph.node if id(node) not in gone]
    return [instead.get(id(node), node) for node in kept]


def _gelu(net: _Net, erf: Any) -> tuple[str, Any, list[Any]] | None:
    """Return x, the node that returns its Gelu, and the nodes before that; None if it is none."""
    scaled = net.makers.get(erf.input[0])
    x = net.beside(scaled, "Div", math.sqrt(2)) or net.beside(
        scaled, "Mul", math.sqrt(0.5)
    )
    more = net.reader(erf.output[0])
    if not x or net.reader(erf.input[0]) is None or more is None:
        return None
    if net.beside(more, "Add", 1.0) != erf.output[0]:
        return None
    times = net.reader(more.output[0])
    if times is None or times.op_type != "Mul":
        return None
    other = next(name for name in times.input if name != more.output[0])
    inner = [scaled, erf, more]
    if other == x:
        last = net.reader(times.output[0])
        is_half = net.beside(last, "Mul", 0.5) == times.output[0]
        return (x, last, [*inner, times]) if is_half else None
    half = net.makers.get(other)
    if net.beside(half, "Mul", 0.5) == x and net.reader(other) is not None:
        return x, times, [*inner, half]
    return None
