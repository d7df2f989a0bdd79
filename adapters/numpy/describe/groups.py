"""Groups of ops whose channels can be changed together without a change of what is computed."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.adapters.numpy.graph import Array, Graph, Node
from octavo.core.numerics.channels import EVERY, SCALE_ALONE, norm_steps
from octavo.core.values.graph import Group, Op

from .weights import channel_axis

_NORMS = ("LayerNormalization", "RMSNormalization")
_FREE = ("Gelu", "Swish", "Mul")
"""Operators that take no factor in, and whose linear readers change the value themselves."""


def rescale_groups(graph: Graph, ops: tuple[Op, ...]) -> tuple[Group, ...]:
    """Find values whose channels can be changed: norm, linear or convolution -> the same.

    A ReLU between them commutes with positive factors. Every reader of the value must be an op that
    can take the factors into its weight, and the value must not leave the graph. Where a norm, GELU
    or gate does not write for such readers alone, the linear ops that read it change it by steps of
    their own.
    """
    finder = _Finder(graph, ops)
    found = []
    for node in graph.nodes:
        group = finder.fused(node) or finder.online(node)
        if group is not None:
            found.append(group)
    return tuple(found)


def norm_names(node: str) -> tuple[str, str]:
    """Return what groups call the gain and the shift of the norm folded into a node."""
    return f"{node}:gain", f"{node}:shift"


def norm_tensors(graph: Graph) -> dict[str, Array]:
    """Return the gains and shifts of folded norms by their names."""
    found: dict[str, Array] = {}
    for node, tensors in graph.norms.items():
        found.update(zip(norm_names(node), tensors, strict=True))
    return found


def channels_of(graph: Graph, node: Node) -> int:
    """Return the length of the channel axis that a producer writes."""
    array = graph.initializers[node.inputs[1]]
    return (
        array.shape[channel_axis(node)] if node.op in ("Conv", "Gemm") else array.size
    )


@dataclass(frozen=True, slots=True)
class _Value:
    """A value that a group may change.

    Attributes:
        name: Its name.
        producer: The operator that writes it.
        channels: How many; 0 where any number will do.
    """

    name: str
    producer: str
    channels: int = 0


class _Finder:
    def __init__(self, graph: Graph, ops: tuple[Op, ...]) -> None:
        self._graph = graph
        self._ops = {op.name: op for op in ops}
        self._consumers = graph.consumers()

    def fused(self, node: Node) -> Group | None:
        """Return the group whose changes a node takes in, all readers being members."""
        name = node.outputs[0]
        is_inner = name not in self._graph.outputs and not any(node.outputs[1:])
        if not is_inner or not self._divides(node):
            return None
        value = _Value(name, node.op, channels_of(self._graph, node))
        readers = self._consumers.get(name, [])
        if not readers or not all(
            self._multiplies(reader, value) for reader in readers
        ):
            return None
        takes = SCALE_ALONE if node.op == "Conv" else EVERY
        gain, shift = self._gain_and_shift(node)
        return Group(
            f"rescale:{name}",
            "rescale",
            tuple(reader.name for reader in readers),
            node.name,
            value.channels,
            name,
            gain=gain,
            shift=shift,
            takes=takes,
            online=takes & _not_taken_in(node),
            rectified=node.get("activation", "") == "Relu",
        )

    def _gain_and_shift(self, node: Node) -> tuple[str, str]:
        """Return the names of a norm's gain and shift: the node's own, or those folded into it."""
        if node.op in _NORMS:
            return node.input(1), node.input(2)
        if node.name in self._graph.norms:
            gain, shift = norm_names(node.name)
            return gain, shift
        return "", ""

    def online(self, node: Node) -> Group | None:
        """Return the group of a node's linear readers, which change the value by own steps."""
        is_free = node.op in (*_FREE, *_NORMS) or node.get("activation", "") in _FREE
        if not is_free:
            return None
        value = _Value(node.outputs[0], node.op)
        members = []
        widths = set()
        for reader in self._consumers.get(value.name, []):
            weight = self._ops[reader.name].weight
            if weight is not None and self._multiplies(reader, value):
                members.append(reader.name)
                widths.add(weight.shape[1 - weight.channel_axis])
        if len(widths) != 1:
            return None
        return Group(
            f"rescale:{value.name}",
            "rescale",
            tuple(members),
            "",
            widths.pop(),
            value.name,
            takes=EVERY,
            online=EVERY,
        )

    def _divides(self, node: Node) -> bool:
        """True if a producer can write its channels divided by factors."""
        if node.op in _NORMS:
            return self._is_last_axis_norm(node) and self._is_alone(node)
        # A positive factor does not pass through GELU or tanh.
        if node.op not in ("Conv", "Gemm") or node.get("activation", "") not in (
            "",
            "Relu",
        ):
            return False
        op = self._ops[node.name]
        return op.weight is not None and not op.out_of_reach and self._is_alone(node)

    def _is_last_axis_norm(self, node: Node) -> bool:
        constants = self._graph.initializers
        if any(v and v not in constants for v in node.inputs[1:]):
            return False
        return bool(node.get("axis", -1) == -1 and constants[node.inputs[1]].ndim == 1)

    def _multiplies(self, node: Node, value: _Value) -> bool:
        """True if a reader can take a value's factors into its weight."""
        op = self._ops[node.name]
        if node.inputs[0] != value.name or op.weight is None or op.out_of_reach:
            return False
        if not self._is_alone(node):
            return False
        shape = op.weight.shape
        if node.op == "Gemm" and value.producer != "Conv":
            width = shape[1 - channel_axis(node)]
            return not value.channels or width == value.channels
        if node.op == "Conv" and value.producer == "Conv":
            return bool(shape[1] * node.get("group", 1) == value.channels)
        return False

    def _is_alone(self, node: Node) -> bool:
        """True if no other node reads the tensors that a rescaling would change."""
        tensors = [v for v in node.inputs[1:3] if v in self._graph.initializers]
        is_output = any(v in self._graph.outputs for v in tensors)
        return not is_output and all(len(self._consumers[v]) == 1 for v in tensors)


def _not_taken_in(node: Node) -> frozenset[str]:
    """Return the kinds of change that a producer cannot take in."""
    if node.op in _NORMS:
        return norm_steps(has_shift=node.input(2) != "")
    if node.get("activation", ""):
        return frozenset({"shift", "rotation"})
    return frozenset()
