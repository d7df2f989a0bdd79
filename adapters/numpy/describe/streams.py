"""Streams of channels: values that share one factor per channel.

Residual sums, ReLU and pooling tie them together. A stream is written by convolutions, summed,
pooled, and read by convolutions, or by linear layers once a sample is one number for each channel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from octavo.adapters.numpy.graph import Array, Graph, Node
from octavo.core.values.graph import Group

from .weights import channel_axis

_GLOBAL = ("GlobalAveragePool", "GlobalMaxPool")
_PASSING = ("Relu", "MaxPool", "AveragePool", *_GLOBAL)
_FLATTENING = ("Flatten", "Reshape", "Squeeze")


@dataclass
class Stream:
    """One stream.

    Attributes:
        writers: Convolutions whose output channels are divided.
        readers: Nodes whose input channels are multiplied.
        values: All values that are divided, the first writer's first.
        ends: The values that readers read.
        pooled: Those of them in which a sample is one number for each channel.
    """

    writers: list[Node] = field(default_factory=list)
    readers: list[Node] = field(default_factory=list)
    values: dict[str, None] = field(default_factory=dict)
    ends: dict[str, None] = field(default_factory=dict)
    pooled: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class StreamFinder:
    """Follows values both ways until a stream is closed, or an op cannot take part.

    Attributes:
        graph: The optimised graph.
        writes: Whether a convolution's channels can be divided.
        reads: Whether a node's weight alone can take factors.
    """

    graph: Graph
    writes: Callable[[Node], bool]
    reads: Callable[[Node], bool]

    def __iter__(self) -> Iterator[Stream]:
        consumers, producers = self.graph.consumers(), self.graph.producers()
        taken: set[str] = set()
        for node in self.graph.nodes:
            if node.op != "Conv" or node.name in taken or not self.writes(node):
                continue
            stream = self._follow(node.outputs[0], producers, consumers)
            if stream is None or not stream.readers:
                continue
            if len({_width(self.graph, w) for w in stream.writers}) != 1:
                continue
            width = _width(self.graph, node)
            if any(_read(self.graph, r) != width for r in stream.readers):
                continue
            taken.update(writer.name for writer in stream.writers)
            yield stream

    def _follow(
        self,
        start: str,
        producers: Mapping[str, Node],
        consumers: Mapping[str, list[Node]],
    ) -> Stream | None:
        stream = Stream()
        pending = [start]
        while pending:
            value = pending.pop()
            if value in stream.values:
                continue
            stream.values[value] = None
            before = self._before(producers.get(value), stream)
            after = self._after(value, consumers.get(value, []), stream)
            if before is None or after is None or value in self.graph.outputs:
                return None
            pending += before
            pending += after
        return stream

    def _before(self, node: Node | None, stream: Stream) -> list[str] | None:
        """Return the values that a value is made of; None where it cannot be followed."""
        if node is None:
            return None
        if node.op == "Conv":
            if not self.writes(node):
                return None
            stream.writers.append(node)
            return []
        if self._is_sum(node):
            return list(node.inputs)
        return [node.inputs[0]] if self._passes(node, stream) else None

    def _after(
        self, value: str, readers: list[Node], stream: Stream
    ) -> list[str] | None:
        """Return the values that are made of a value; None where a reader cannot take part."""
        further: list[str] = []
        for node in readers:
            if self._is_sum(node):
                further.append(node.outputs[0])
                continue
            if node.inputs[0] != value or value in node.inputs[1:]:
                return None
            if self._passes(node, stream):
                further.append(node.outputs[0])
                continue
            is_row = node.op == "Gemm" and value in stream.pooled
            if not (node.op == "Conv" or is_row) or not self.reads(node):
                return None
            stream.readers.append(node)
            stream.ends[value] = None
        return further

    def _is_sum(self, node: Node) -> bool:
        """True for a sum of two values, of which neither is a constant."""
        constants = self.graph.initializers
        is_add = node.op == "Add" and not any(v in constants for v in node.inputs)
        return is_add and len(set(node.inputs)) == 2

    def _passes(self, node: Node, stream: Stream) -> bool:
        """True for nodes that keep channels apart and commute with positive factors."""
        result = node.outputs[0]
        is_pooled = node.inputs[0] in stream.pooled
        if node.op in _FLATTENING:
            # After global pooling a sample is one number for each channel, in whatever shape.
            if is_pooled:
                stream.pooled.add(result)
            return is_pooled
        if node.op in _GLOBAL or self._is_spatial_mean(node):
            stream.pooled.add(result)
            return True
        if node.op not in _PASSING or any(node.outputs[1:]):
            return False
        if is_pooled:
            stream.pooled.add(result)
        return True

    def _is_spatial_mean(self, node: Node) -> bool:
        """True for a mean over both axes of an image."""
        if node.op != "ReduceMean":
            return False
        axes = node.get("axes", None)
        held = self.graph.initializers.get(node.input(1))
        if axes is None and held is not None:
            axes = held.tolist()
        return axes is not None and sorted(axis % 4 for axis in axes) == [2, 3]


def _width(graph: Graph, writer: Node) -> int:
    return int(graph.initializers[writer.inputs[1]].shape[0])


def _read(graph: Graph, reader: Node) -> int:
    shape = graph.initializers[reader.inputs[1]].shape
    if reader.op == "Gemm":
        return int(shape[1 - channel_axis(reader)])
    return int(shape[1] * reader.get("group", 1))


def writers_of(graph: Graph, group: Group) -> list[Node]:
    """Return the nodes in which a group's value is divided: its producer, or all of a stream."""
    divided = {group.value, *group.values} if group.values else set()
    return [
        node
        for node in graph.nodes
        if node.name == group.producer
        or (node.op == "Conv" and node.outputs[0] in divided)
    ]


def norm_of(graph: Graph, writers: list[Node]) -> tuple[Array, Array] | None:
    """Return gain and shift of the batch norms folded into writers whose outputs are added up.

    As if they were independent: means add up, and so do variances. None where one has none.
    """
    norms = [graph.norms.get(writer.name) for writer in writers]
    found = [norm for norm in norms if norm is not None]
    if not found or len(found) < len(norms):
        return None
    gains, shifts = zip(*found, strict=True)
    gain = np.sqrt(np.sum(np.square(gains), axis=0))
    return gain, np.sum(shifts, axis=0)
