"""Models that torch.fx can trace: batch norms folded, residual adds and ReLU fused."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cached_property
from operator import itemgetter
from typing import Any

from torch import nn
from torch.fx import Graph, Node

from octavo.adapters.pytorch.capture.capture import Capture
from octavo.adapters.pytorch.capture.layers import find_layers
from octavo.adapters.pytorch.capture.links import InputMaps
from octavo.adapters.pytorch.capture.standins.functional import WITH_WEIGHTS, products
from octavo.core.values.graph import Op, tied_groups

from .fusing import find_in_graph
from .linking import links_of
from .sites import Sites, nodes_in


class GraphCapture(Capture):
    """A traced model.

    Args:
        root: A skeleton.
        graph: Its graph, whose modules are those of ``root``.
        shapes: Node name -> shape of its value in the example run; empty without an example.
        factors: Op name -> what it does to its input's channels first.

    Attributes:
        sites: The graph's nodes, and the modules that they call.
        inner: Op name -> the nodes that it stands for, first to last; ops that are called once
            only.
        others: Op name -> the node that a fused add adds.
    """

    def __init__(
        self,
        root: nn.Module,
        graph: Graph,
        shapes: Mapping[str, tuple[int, ...]],
        factors: InputMaps | None = None,
    ) -> None:
        self.root = root
        self.factors = dict(factors or {})
        self.graph = graph
        self.sites = Sites(root, graph, shapes)
        ops = find_layers(root)
        found = find_in_graph(self.sites, ops)
        self.layers = found.layers
        self.inner = found.inner
        self.others = found.others
        self.notes = tuple(_notes(self.sites, ops))
        links = links_of(self.sites, found)
        self.links = {link.group.name: link for link in links}
        self.groups = (
            *(link.group for link in self.links.values()),
            *tied_groups(layer.op for layer in self.layers.values()),
        )
        end = next(node for node in graph.nodes if node.op == "output")
        results = nodes_in(end.args[0])
        self.outputs = tuple(self.sites.value_name(node) for node in results)

    @property
    def ops(self) -> tuple[Op, ...]:
        """The layers, and products that are out of reach, in the order of their first calls."""
        found: list[tuple[int, Op]] = []
        for layer in self.layers.values():
            first = self.sites.calls[layer.path][0]
            found.append((self.order[first], layer.op))
        taken = {op.name for _, op in found}
        for node, op in products(self.graph):
            if op.name not in taken:
                found.append((self.order[node], op))
        # By place alone: ops have no order of their own.
        found.sort(key=itemgetter(0))
        return tuple(op for _, op in found)

    def facts(self) -> Mapping[str, Any]:
        """Return what a saved model needs to be seen the same way again."""
        shapes = {name: list(shape) for name, shape in self.sites.shapes.items()}
        return {"kind": "graph", "shapes": shapes}

    def on(self, root: nn.Module, factors: InputMaps) -> GraphCapture:
        """Return the same view over another skeleton."""
        return GraphCapture(root, self.graph, self.sites.shapes, factors)

    @property
    def has_branches(self) -> bool:
        """False: a graph that follows one of several is given up."""
        return False

    @property
    def order(self) -> Mapping[Node, int]:
        """Node -> its place."""
        return self.sites.order

    @property
    def end(self) -> int:
        """Place behind the last node."""
        return len(self.order)

    def span(self, values: Collection[str]) -> tuple[int, int]:
        """Return the first node that gives one of the values, and the one after the last."""
        wanted, met = set(values), set[str]()
        places = []
        for node, place in self.order.items():
            op = self.joined.get(node)
            here = {node.name, f"{op}:in", f"{op}:out"} & wanted
            if here:
                met |= here
                places.append(place)
        if not places or met != wanted:
            return 0, self.end
        return min(places), max(places) + 1

    def before_readers(self, values: Collection[str]) -> int:
        """Return the place behind the first value; before it where a value is an op's own input."""
        first, _ = self.span(values)
        read_at_once = any(value.endswith(":in") for value in values)
        return first if read_at_once else first + 1

    @cached_property
    def joined(self) -> Mapping[Node, str]:
        """Call site -> op, for ops with several."""
        sites: dict[Node, str] = {}
        for layer in self.layers.values():
            if layer.op.name not in self.inner:
                sites |= dict.fromkeys(self.sites.calls[layer.path], layer.op.name)
        return sites


def _notes(sites: Sites, ops: Collection[str]) -> list[str]:
    """Return what was out of reach and why."""
    notes = []
    uncalled = [path for path in ops if path not in sites.calls]
    if uncalled:
        names = ", ".join(uncalled)
        notes.append(f"never called by the model's forward, left as they are: {names}")
    functions = (node for node in sites.graph.nodes if node.op == "call_function")
    functional = [node.name for node in functions if node.target in WITH_WEIGHTS]
    if functional:
        notes.append(
            "functional calls whose weights are computed, or used elsewhere too, stay float: "
            + ", ".join(functional)
        )
    return notes
