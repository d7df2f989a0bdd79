"""Models that torch.fx can trace: batch norms folded, residual adds and ReLU fused."""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import fx, nn

from octavo.adapters.pytorch.capture.standins.functional import WITH_WEIGHTS, products
from octavo.adapters.pytorch.capture.standins.graph_products import stands_for_call
from octavo.core.values.graph import Op, tied_groups

from .capture import Capture
from .folding import folds
from .layers import Layer, find_layers, with_shapes
from .links import Factors, Link, input_link, is_norm
from .watching import act_of

_ADDS = {operator.add, operator.iadd, torch.add}
_RELUS = {torch.relu, torch.relu_, nn.functional.relu, nn.functional.relu_, "relu", "relu_"}
IDLE = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.Identity)
"""Modules that pass their input on in eval mode."""


class GraphCapture(Capture):
    """A traced model.

    Args:
        root: A skeleton.
        graph: Its graph, whose modules are those of ``root``.
        shapes: Node name -> shape of its value in the example run; empty without an example.
        factors: Op name -> what it does to its input's channels first.

    Attributes:
        inner: Op name -> the nodes that it stands for, first to last; ops that are called once only.
        others: Op name -> the node that a fused add adds.
        calls: Module path -> its call sites.
    """

    def __init__(
        self,
        root: nn.Module,
        graph: fx.Graph,
        shapes: Mapping[str, tuple[int, ...]],
        factors: Factors | None = None,
    ) -> None:
        self.root = root
        self.factors = dict(factors or {})
        self.graph = graph
        self._shapes = shapes
        self.modules = dict(root.named_modules())
        self.calls: dict[str, list[fx.Node]] = {}
        for node in graph.nodes:
            if node.op == "call_module":
                self.calls.setdefault(str(node.target), []).append(node)
        self.inner: dict[str, tuple[fx.Node, ...]] = {}
        self.others: dict[str, fx.Node] = {}
        self.order = {node: i for i, node in enumerate(graph.nodes)}
        self.layers, remarks = self._find()
        self.notes = tuple(remarks)
        self.links = {link.group.name: link for link in self._links()}
        self.groups = (
            *(link.group for link in self.links.values()),
            *tied_groups(layer.op for layer in self.layers.values()),
        )
        result = next(n for n in graph.nodes if n.op == "output").args[0]
        self.outputs = tuple(value_name(self, n) for n in _nodes_in(result))

    @property
    def ops(self) -> tuple[Op, ...]:
        """The layers, and products that are out of reach, in the order of their first calls."""
        found = [(self.calls[layer.path][0], layer.op) for layer in self.layers.values()]
        taken = {op.name for _, op in found}
        found += [(node, op) for node, op in products(self.graph) if op.name not in taken]
        return tuple(op for _, op in sorted(found, key=lambda pair: self.order[pair[0]]))

    def facts(self) -> Mapping[str, Any]:
        """Return what a saved model needs to be seen the same way again."""
        return {"kind": "graph", "shapes": {k: list(v) for k, v in self._shapes.items()}}

    def on(self, root: nn.Module, factors: Factors) -> GraphCapture:
        """Return the same view over another skeleton."""
        return GraphCapture(root, self.graph, self._shapes, factors)

    # Seeing

    def _find(self) -> tuple[dict[str, Layer], list[str]]:
        ops = find_layers(self.root)
        called = [path for path in self.calls if path in ops]
        # A fused add must find its other operand computed: later convolutions choose first.
        layers = {
            p: self._once(ops[p], p) if len(self.calls[p]) == 1 else self._often(ops[p], p)
            for p in called
        }
        remarks: list[str] = []
        if uncalled := [path for path in ops if path not in self.calls]:
            remarks.append(
                f"never called by the model's forward, left as they are: {', '.join(uncalled)}"
            )
        if functional := [
            n.name for n in self.graph.nodes if n.op == "call_function" and n.target in WITH_WEIGHTS
        ]:
            remarks.append(
                f"functional calls whose weights are computed, or used elsewhere too, stay float: {', '.join(functional)}"
            )
        return {layers[p].op.name: layers[p] for p in called}, remarks

    def _often(self, op: Op, path: str) -> Layer:
        """A module that is called more than once: one decision for all its call sites, nothing fused."""
        shapes = [self._shapes[n.name] for n in self.calls[path] if n.name in self._shapes]
        return Layer(
            with_shapes(op, shapes[0] if shapes else None),
            path,
            functional=stands_for_call(self.modules[path]),
        )

    def _once(self, op: Op, path: str) -> Layer:
        node = end = self.calls[path][0]
        inner, norm, fused = [node], "", []
        inputs = [value_name(self, node.args[0])]
        follower = only_user(end)
        if follower is not None and self._folds(op, follower, node):
            norm, end = str(follower.target), follower
            inner.append(end)
            follower = only_user(end)
        if op.type in ("conv", "conv_transpose"):
            if (
                follower is not None
                and op.type == "conv"
                and len(self._shapes.get(node.name, ())) == 4
            ):
                other = self._added(follower, end, node)
                if other is not None:
                    fused.append("add")
                    self.others[op.name] = other
                    inputs.append(value_name(self, other))
                    end = follower
                    inner.append(end)
                    follower = only_user(end)
            if follower is not None and self._is_relu(follower):
                fused.append("relu")
                end = follower
                inner.append(end)
        else:
            act = self._act(follower) if follower is not None and op.type == "linear" else ""
            if follower is not None and act:
                fused.append(act)
                end = follower
                inner.append(end)
        self.inner[op.name] = tuple(inner)
        attributes = {**op.attributes, **({"fused": "+".join(fused)} if fused else {})}
        bias = op.bias or (f"{path}.bias" if norm else None)
        seen = replace(
            op, inputs=tuple(inputs), outputs=(end.name,), bias=bias, attributes=attributes
        )
        return Layer(
            with_shapes(seen, self._shapes.get(node.name)),
            path,
            norm,
            tuple(fused),
            functional=stands_for_call(self.modules[path]),
        )

    def _folds(self, op: Op, node: fx.Node, start: fx.Node) -> bool:
        if node.op != "call_module" or len(self.calls[str(node.target)]) != 1:
            return False
        return folds(op, self.modules[str(node.target)], self._shapes.get(start.name))

    def _is_relu(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return type(self.modules[str(node.target)]) is nn.ReLU
        return node.target in _RELUS

    def _act(self, node: fx.Node) -> str:
        """Return which activation function a node computes; empty if it is none that the linear kernel takes in."""
        if node.op == "call_module":
            return (
                act_of(self.modules[str(node.target)])
                if len(self.calls[str(node.target)]) == 1
                else ""
            )
        if node.target in _RELUS:
            return "relu"
        if node.target is nn.functional.gelu:
            return "gelu_tanh" if node.kwargs.get("approximate") == "tanh" else "gelu"
        return "silu" if node.target is nn.functional.silu else ""

    def _added(self, node: fx.Node, mine: fx.Node, start: fx.Node) -> fx.Node | None:
        """Return what ``node`` adds to ``mine``, if it is a plain sum of tensors of one shape that is computed before ``start``."""
        if (
            node.op != "call_function"
            or node.target not in _ADDS
            or len(node.args) != 2
            or node.kwargs
        ):
            return None
        other = node.args[1] if node.args[0] is mine else node.args[0]
        if (
            not isinstance(other, fx.Node)
            or other is mine
            or self._shapes.get(other.name) != self._shapes.get(mine.name)
        ):
            return None
        return other if self.order[other] < self.order[start] else None

    def _links(self) -> Iterable[Link]:
        """Yield norm -> layers and convolution -> convolution links, over which channel scales may be moved."""
        by_start = {self.inner[n][0]: n for n in self.inner}
        linked: set[str] = set()
        for node in self.graph.nodes:
            if (
                node.op == "call_module"
                and is_norm(self.modules[str(node.target)])
                and len(self.calls[str(node.target)]) == 1
            ):
                members = self._readers(node, by_start, "linear")
                if members:
                    linked.update(members)
                    yield Link.of_norm(
                        str(node.target),
                        self.modules[str(node.target)],
                        [self.layers[m] for m in members],
                        node.name,
                    )
        for name, nodes in self.inner.items():
            layer = self.layers[name]
            affine = not layer.norm or getattr(self.modules[layer.norm], "weight", None) is not None
            if layer.op.type == "conv" and affine and "add" not in layer.fused:
                members = self._readers(nodes[-1], by_start, "conv")
                if members:
                    yield Link.of_conv(layer, [self.layers[m] for m in members], nodes[-1].name)

        rest: dict[str, list[Layer]] = {}
        for name in self.inner:
            if self.layers[name].op.type == "linear" and name not in linked:
                rest.setdefault(self.layers[name].op.inputs[0], []).append(self.layers[name])
        for value, found in rest.items():
            if not any(layer.op.weight and layer.op.weight.shared_with for layer in found):
                yield input_link(found, value)

    def _readers(self, node: fx.Node, by_start: Mapping[fx.Node, str], kind: str) -> list[str]:
        """Return the ops that read ``node``, if all that read it are ops of that kind and nothing else happens in between."""
        found: list[str] = []
        for user in node.users:
            name = by_start.get(user)
            if name is None or self.layers[name].op.type != kind:
                return []
            found.append(name)
        tied = any((w := self.layers[n].op.weight) is not None and w.shared_with for n in found)
        return [] if tied else found

    # Places

    @property
    def end(self) -> int:  # type: ignore[override]
        """Place behind the last node."""
        return len(self.order)

    def span(self, values: Collection[str]) -> tuple[int, int]:
        """Return the first node that gives one of the values, and the one after the last."""
        wanted, met = set(values), set[str]()
        places = []
        for node, place in self.order.items():
            op = self.joined.get(node)
            if here := {node.name, f"{op}:in", f"{op}:out"} & wanted:
                met |= here
                places.append(place)
        return (min(places), max(places) + 1) if places and met == wanted else (0, self.end)

    @cached_property
    def joined(self) -> Mapping[fx.Node, str]:
        """Call site -> op, for ops with several."""
        return {
            node: layer.op.name
            for layer in self.layers.values()
            for node in self.calls[layer.path]
            if layer.op.name not in self.inner
        }


def _nodes_in(value: Any) -> Iterable[fx.Node]:
    found: list[fx.Node] = []
    fx.map_arg(value, found.append)
    return found


def only_user(node: fx.Node) -> fx.Node | None:
    """Return the node's reader, if it has one only."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def is_idle(capture: GraphCapture, node: fx.Node) -> bool:
    """True for modules that pass their input on in eval mode."""
    return node.op == "call_module" and isinstance(capture.modules[str(node.target)], IDLE)


def value_name(capture: GraphCapture, node: Any) -> str:
    """Return the name of a node's value; modules that do nothing in eval mode pass their input's name on."""
    while isinstance(node, fx.Node) and is_idle(capture, node):
        node = node.args[0]
    return str(node.name)
