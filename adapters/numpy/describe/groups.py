"""Groups of ops whose channels can be changed together without a change of what is computed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from octavo.adapters.numpy.graph import Array, Graph, Node
from octavo.core.numerics.channels import EVERY, SCALE_ALONE, norm_steps
from octavo.core.values.graph import Group, Op

from .streams import Stream, StreamFinder, norm_of, writers_of
from .weights import channel_axis
from .written_norms import WrittenNorms

_NORMS = ("LayerNormalization", "RMSNormalization")
_FREE = ("Gelu", "Swish", "Mul")
"""Operators that take no factor in, and whose linear readers change the value themselves."""


def rescale_groups(graph: Graph, ops: tuple[Op, ...]) -> tuple[Group, ...]:
    """Find values whose channels can be changed: norm, linear or convolution -> the same.

    Convolutions are taken together by streams (:mod:`.streams`). A ReLU between them commutes with
    positive factors. Every reader of the value must be an op that
    can take the factors into its weight, and the value must not leave the graph. Where a norm, GELU
    or gate does not write for such readers alone, the linear ops that read it change it by steps of
    their own.
    """
    finder = _Finder(graph, ops)
    streams = finder.streams()
    found = []
    for node in graph.nodes:
        if node.op == "Conv":
            group = streams.get(node.name) or finder.online(node)
        else:
            group = finder.fused(node) or finder.online(node)
        if group is not None:
            found.append(group)
    return tuple(found)


def norm_tensors(graph: Graph, groups: Iterable[Group]) -> dict[str, Array]:
    """Return the gains and shifts of folded norms by the names that groups give them."""
    found: dict[str, Array] = {}
    for group in groups:
        norm = norm_of(graph, writers_of(graph, group)) if group.gain else None
        if norm is not None:
            found[group.gain], found[group.shift] = norm
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
        self._written = WrittenNorms(graph)

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
            takes=EVERY,
            online=_not_taken_in(node),
            rectified=node.get("activation", "") == "Relu",
        )

    def _gain_and_shift(self, node: Node) -> tuple[str, str]:
        """Return the names of a norm's gain and shift: the node's own, or those folded into it."""
        if node.op in _NORMS:
            return node.input(1), node.input(2)
        return self._folded(f"rescale:{node.outputs[0]}", [node])

    def _folded(self, group: str, writers: list[Node]) -> tuple[str, str]:
        """Return what a group calls the gain and shift of the norms in its writers."""
        if norm_of(self._graph, writers) is None:
            return "", ""
        return f"{group}:gain", f"{group}:shift"

    def streams(self) -> dict[str, Group]:
        """Return the groups of convolutions by their producers."""
        found = {}
        for stream in StreamFinder(self._graph, self._divides, self._takes_factors):
            group = self._of_stream(stream)
            found[group.producer] = group
        return found

    def _of_stream(self, stream: Stream) -> Group:
        first = stream.writers[0]
        name = f"rescale:{first.outputs[0]}"
        takes = SCALE_ALONE
        if all(node.op == "Gemm" for node in stream.readers) and len(stream.ends) == 1:
            takes = EVERY
        gain, shift = self._folded(name, stream.writers)
        is_alone = len(stream.writers) == 1
        return Group(
            name,
            "rescale",
            tuple(node.name for node in stream.readers),
            first.name,
            channels_of(self._graph, first),
            next(iter(stream.ends)),
            tuple(stream.values) if len(stream.values) > 1 else (),
            gain=gain,
            shift=shift,
            takes=takes,
            online=takes - SCALE_ALONE,
            rectified=is_alone and first.get("activation", "") == "Relu",
        )

    def _takes_factors(self, node: Node) -> bool:
        """True if a node's weight can be multiplied."""
        op = self._ops[node.name]
        return op.weight is not None and not op.out_of_reach and self._is_alone(node)

    def online(self, node: Node) -> Group | None:
        """Return the group of a node's linear readers, which change the value by own steps."""
        is_free = node.op in (*_FREE, *_NORMS) or node.get("activation", "") in _FREE
        norm = self._written.parameters(node)
        if norm is None and not is_free:
            return None
        if node.op in _NORMS and self._is_last_axis_norm(node):
            norm = node.input(1), node.input(2)
        gain, shift = norm or ("", "")
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
            gain=gain,
            shift=shift,
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
        if len(node.inputs) < 2 or any(
            v and v not in constants for v in node.inputs[1:]
        ):
            return False
        return bool(node.get("axis", -1) == -1 and constants[node.inputs[1]].ndim == 1)

    def _multiplies(self, node: Node, value: _Value) -> bool:
        """True if a reader can take a value's factors into its weight."""
        weight = self._ops[node.name].weight
        if node.inputs[0] != value.name or not self._takes_factors(node):
            return False
        if node.op != "Gemm" or value.producer == "Conv" or weight is None:
            return False
        width = weight.shape[1 - channel_axis(node)]
        return not value.channels or width == value.channels

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
