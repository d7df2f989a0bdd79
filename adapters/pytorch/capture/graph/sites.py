"""A traced graph's nodes, and the modules that they call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.fx import Graph, Node, map_arg

IDLE = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.Identity)
"""Modules that pass their input on in eval mode."""
Shape = tuple[int, ...]


class Sites:
    """Where a graph calls which module.

    Args:
        root: The module tree that the graph runs over.
        graph: The graph.
        shapes: Node name -> shape of its value in the example run; empty without an example.

    Attributes:
        modules: Path -> module.
        calls: Module path -> its call sites.
        order: Node -> its place.
    """

    def __init__(
        self, root: nn.Module, graph: Graph, shapes: Mapping[str, Shape]
    ) -> None:
        self.graph = graph
        self.shapes = shapes
        self.modules: dict[str, nn.Module] = dict(root.named_modules())
        self.order: dict[Node, int] = {node: i for i, node in enumerate(graph.nodes)}
        self.calls: dict[str, list[Node]] = {}
        for node in graph.nodes:
            if node.op == "call_module":
                sites = self.calls.setdefault(str(node.target), [])
                sites.append(node)

    def module(self, node: Node) -> nn.Module | None:
        """Return the module that a node calls; None for a node that calls none."""
        if node.op != "call_module":
            return None
        return self.modules[str(node.target)]

    def calls_once(self, node: Node) -> bool:
        """True for a node that calls a module which nothing else calls."""
        if node.op != "call_module":
            return False
        return len(self.calls[str(node.target)]) == 1

    def shape(self, node: Node) -> Shape | None:
        """Return the shape of a node's value in the example run; None where it was not seen."""
        return self.shapes.get(node.name)

    def is_idle(self, node: Node) -> bool:
        """True for modules that pass their input on in eval mode."""
        return isinstance(self.module(node), IDLE)

    def value_name(self, node: Any) -> str:
        """Return the name of a node's value; idle modules pass their input's name on."""
        while isinstance(node, Node) and self.is_idle(node):
            node = node.args[0]
        return str(node.name)


def only_user(node: Node) -> Node | None:
    """Return the node's reader, if it has one only."""
    if len(node.users) != 1:
        return None
    return next(iter(node.users))


def nodes_in(value: Any) -> list[Node]:
    """Return the nodes in nested arguments, in order."""
    found: list[Node] = []
    map_arg(value, found.append)
    return found
