"""The layers of a traced graph, with what follows them and runs inside their kernels."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import nn
from torch.fx import Node
from torch.nn import functional as F

from octavo.adapters.pytorch.capture.folding import folds
from octavo.adapters.pytorch.capture.layers import Layer, with_shapes
from octavo.adapters.pytorch.capture.standins.graph_products import stands_for_call
from octavo.adapters.pytorch.capture.watching import act_of
from octavo.core.values.graph import Op

from .sites import Sites, only_user

ADDS = {operator.add, operator.iadd, torch.add}
RELUS = {
    torch.relu,
    torch.relu_,
    F.relu,
    F.relu_,
    "relu",
    "relu_",
}


@dataclass(frozen=True)
class Found:
    """What a graph's layers are.

    Attributes:
        layers: Op name -> layer, in the order of their first calls.
        inner: Op name -> the nodes that it stands for, first to last; ops that are called once
            only.
        others: Op name -> the node that a fused add adds.
    """

    layers: dict[str, Layer] = field(default_factory=dict)
    inner: dict[str, tuple[Node, ...]] = field(default_factory=dict)
    others: dict[str, Node] = field(default_factory=dict)


def find_in_graph(sites: Sites, ops: Mapping[str, Op]) -> Found:
    """Return the layers that a graph calls.

    Args:
        sites: The graph.
        ops: Path -> op of each layer of the module tree.
    """
    found = Found()
    for path, nodes in sites.calls.items():
        if path not in ops:
            continue
        if len(nodes) == 1:
            layer = _called_once(sites, ops[path], path, found)
        else:
            layer = _called_often(sites, ops[path], path)
        found.layers[layer.op.name] = layer
    return found


def _called_often(sites: Sites, op: Op, path: str) -> Layer:
    """Return a module that is called more than once: one decision for all its call sites, nothing
    fused."""
    shapes = [sites.shape(node) for node in sites.calls[path]]
    known = (shape for shape in shapes if shape is not None)
    seen = with_shapes(op, next(known, None))
    functional = stands_for_call(sites.modules[path])
    return Layer(seen, path, functional=functional)


def _called_once(sites: Sites, op: Op, path: str, found: Found) -> Layer:
    """Return a module that is called once; note which nodes its op stands for."""
    start = sites.calls[path][0]
    chain = _Chain(sites, op, start)
    norm = chain.fold()
    chain.fuse()
    found.inner[op.name] = tuple(chain.nodes)
    inputs = [sites.value_name(start.args[0])]
    if chain.other is not None:
        found.others[op.name] = chain.other
        inputs.append(sites.value_name(chain.other))
    attributes = dict(op.attributes)
    if chain.fused:
        attributes["fused"] = "+".join(chain.fused)
    bias = op.bias
    if norm and not bias:
        bias = f"{path}.bias"
    end = chain.nodes[-1]
    seen = replace(
        op,
        inputs=tuple(inputs),
        outputs=(end.name,),
        bias=bias,
        attributes=attributes,
    )
    seen = with_shapes(seen, sites.shape(start))
    functional = stands_for_call(sites.modules[path])
    return Layer(seen, path, norm, tuple(chain.fused), functional=functional)


class _Chain:
    """A layer's node and those behind it that its kernel takes in.

    Args:
        sites: The graph.
        op: The layer's op.
        start: The layer's call.

    Attributes:
        nodes: The layer's call and what was taken in, in order.
        fused: What was taken in: ``add``, and one activation function.
        other: What is added.
    """

    def __init__(self, sites: Sites, op: Op, start: Node) -> None:
        self._sites = sites
        self._op = op
        self.nodes = [start]
        self.fused: list[str] = []
        self.other: Node | None = None

    def fold(self) -> str:
        """Take in a batch norm; return its path, empty if there is none."""
        follower = only_user(self.nodes[-1])
        if follower is None or not self._sites.calls_once(follower):
            return ""
        norm = self._sites.modules[str(follower.target)]
        if not folds(self._op, norm, self._sites.shape(self.nodes[0])):
            return ""
        self.nodes.append(follower)
        return str(follower.target)

    def fuse(self) -> None:
        """Take in what kernels of this op type compute on their results."""
        if self._op.type == "conv":
            self._fuse_add()
        if self._op.type in ("conv", "conv_transpose"):
            self._fuse_act("relu")
        elif self._op.type == "linear":
            self._fuse_act()

    def _fuse_add(self) -> None:
        follower = only_user(self.nodes[-1])
        shape = self._sites.shape(self.nodes[0])
        is_image = shape is not None and len(shape) == 4
        if follower is None or not is_image:
            return
        self.other = self._added(follower)
        if self.other is not None:
            self._take(follower, "add")

    def _fuse_act(self, only: str = "") -> None:
        follower = only_user(self.nodes[-1])
        if follower is None:
            return
        if only == "relu":
            act = "relu" if self._is_relu(follower) else ""
        else:
            act = self._act(follower)
        if act:
            self._take(follower, act)

    def _take(self, node: Node, what: str) -> None:
        self.nodes.append(node)
        self.fused.append(what)

    def _added(self, node: Node) -> Node | None:
        """Return what a node adds to the end of the chain.

        None unless it is a plain sum of tensors of one shape, and the other was computed before the
        chain's start.
        """
        is_add = node.op == "call_function" and node.target in ADDS
        if not is_add or len(node.args) != 2 or node.kwargs:
            return None
        mine = self.nodes[-1]
        other = node.args[1] if node.args[0] is mine else node.args[0]
        if not isinstance(other, Node) or other is mine:
            return None
        if self._sites.shape(other) != self._sites.shape(mine):
            return None
        order = self._sites.order
        start = self.nodes[0]
        return other if order[other] < order[start] else None

    def _is_relu(self, node: Node) -> bool:
        module = self._sites.module(node)
        if module is None:
            return node.target in RELUS
        return type(module) is nn.ReLU

    def _act(self, node: Node) -> str:
        """Return which activation function a node computes.

        Empty if it is none that the linear kernel takes in.
        """
        module = self._sites.module(node)
        if module is not None:
            return act_of(module) if self._sites.calls_once(node) else ""
        if node.target in RELUS:
            return "relu"
        if node.target is F.gelu:
            return "gelu_tanh" if node.kwargs.get("approximate") == "tanh" else "gelu"
        return "silu" if node.target is F.silu else ""
