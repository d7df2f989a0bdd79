"""Whose a node is: the op of the model that it belongs to, in any graph that was made of the
model."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir
from onnx_ir import Node

from octavo.adapters.onnx.prepare.patterns import name_of
from octavo.adapters.onnx.prepare.scopes import walk
from octavo.core.contract.attribution import Step, owners_of
from octavo.core.values.layers import REST

from .site import STEP
from .sites import Sites

TURNS_INTO_FLOATS = "DequantizeLinear"


@dataclass(frozen=True)
class Owners:
    """The nodes and values of a prepared model, by name, each with its op; REST for those of none.

    Graphs that are made of the model keep these names, whatever is fused or put between.
    """

    nodes: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, str] = field(default_factory=dict)

    def of(self, name: str, writes: Collection[str]) -> str | None:
        """Return the op of a node; None for one that the model does not have."""
        if name in self.nodes:
            return self.nodes[name]
        # What is made of a node has its name and more behind it.
        for beginning in _beginnings(name):
            op = self.nodes.get(beginning, REST)
            if op != REST:
                return op
        # A fused node may have a name of its own; it writes what the last of its parts wrote.
        known = (self.values[value] for value in writes if value in self.values)
        return next(known, None)


def _beginnings(name: str) -> Iterator[str]:
    """Yield a name without its last parts, one after the other."""
    while parted := max(name.rfind("/"), name.rfind("_")) + 1:
        name = name[: parted - 1]
        yield name


def owners_in(sites: Sites) -> Owners:
    """Return whose the nodes and values of a prepared model are."""
    nodes: dict[str, str] = {}
    values: dict[str, str] = {}
    for node in walk(sites.graph):
        # Steps that a rescaling put before a product are part of what it costs.
        if STEP not in node.meta:
            _give(node, REST, nodes, values)
    for name, site in sites.sites.items():
        for node in {site.node, site.before_activation, site.last}:
            _give(node, name, nodes, values)
    return Owners(nodes, values)


def _give(node: Node, op: str, nodes: dict[str, str], values: dict[str, str]) -> None:
    nodes[node.name or ""] = op
    values.update((name_of(value), op) for value in node.outputs)


def bytes_by_op(model: ir.Model, owners: Owners) -> dict[str, int]:
    """Return the bytes of each op's tensors; a tensor that several read is the first one's."""
    graph = model.graph
    nodes = list(walk(graph))
    steps = [_step(node, owners) for node in nodes]
    found: dict[str, int] = {}
    counted: set[str] = set()
    for node, op in zip(nodes, owners_of(steps), strict=True):
        for value in node.inputs:
            if value is None or value.const_value is None:
                continue
            name = name_of(value)
            if name in graph.initializers and name not in counted:
                counted.add(name)
                found[op] = found.get(op, 0) + value.const_value.nbytes
    unread = set(graph.initializers) - counted
    tensors = (graph.initializers[name].const_value for name in unread)
    rest = sum(tensor.nbytes for tensor in tensors if tensor is not None)
    found[REST] = found.get(REST, 0) + rest
    return found


def _step(node: Node, owners: Owners) -> Step:
    reads = [name_of(value) for value in node.inputs if value is not None]
    writes = [name_of(value) for value in node.outputs]
    owner = owners.of(node.name or "", writes)
    return Step(owner, reads, writes, node.op_type == TURNS_INTO_FLOATS)
