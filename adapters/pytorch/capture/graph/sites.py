"""A traced graph's nodes, and the modules that they call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx, nn

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
        self, root: nn.Module, graph: fx.Graph, shapes: Mapping[str, Shape]
    ) -> None:
        self.graph = graph
        self.shapes = shapes
        self.modules: dict[str, nn.Module] = dict(root.named_modules())
        self.order: dict[fx.Node, int] = {node: i for i, node in enumerate(graph.nodes)}
        self.calls: dict[str, list[fx.Node]] = {}
        for node in graph.nodes:
            if node.op == "call_module":
                self.calls.setdefault(str(node.target), []).append(node)

    def module(self, node: fx.Node) -> nn.Module | None:
        """Return the module that a node calls; None for a node that calls none."""
        return self.modules[str(node.target)] if node.op == "call_module" else None

    def calls_once(self, node: fx.Node) -> bool:
        """True for a node that calls a module which nothing else calls."""
        return node.op == "call_module" and len(self.calls[str(node.target)]) == 1

    def shape(self, node: fx.Node) -> Shape | None:
        """Return the shape of a node's value in the example run; None where it was not seen."""
        return self.shapes.get(node.name)

    def is_idle(self, node: fx.Node) -> bool:
        """True for modules that pass their input on in eval mode."""
        return isinstance(self.module(node), IDLE)

    def value_name(self, node: Any) -> str:
        """Return the name of a node's value; idle modules pass their input's name on."""
        while isinstance(node, fx.Node) and self.is_idle(node):
            node = node.args[0]
        return str(node.name)


def only_user(node: fx.Node) -> fx.Node | None:
    """Return the node's reader, if it has one only."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def nodes_in(value: Any) -> list[fx.Node]:
    """Return the nodes in nested arguments, in order."""
    found: list[fx.Node] = []
    fx.map_arg(value, found.append)
    return found
