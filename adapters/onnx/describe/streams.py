"""Streams: values that share one factor per channel.

Residual sums, ReLU and pooling tie them together. A stream is written by convolutions (or linear
ops), summed, pooled, and read by convolutions or linear ops. Dividing what is written and
multiplying what reads by one factor per channel leaves the function as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from onnx_ir import Node, Value

from octavo.adapters.onnx.prepare.folded_norms import FoldedNorm, folded_norm
from octavo.adapters.onnx.prepare.patterns import name_of, producer_at
from octavo.core.numerics.channels import EVERY, SCALE_ALONE
from octavo.core.values.graph import Group

from .site import Site

_FLATTENING = frozenset({"Flatten", "Reshape", "Squeeze"})
_GLOBAL_POOLING = "GlobalAveragePool"
_POOLING = frozenset({"MaxPool", "AveragePool", _GLOBAL_POOLING})


@dataclass
class Stream:
    """One stream.

    Attributes:
        writers: Sites whose output channels are divided.
        readers: Sites whose input channels are multiplied.
        values: Names of all values that are divided, the first writer's first.
        channels: How many factors.
    """

    writers: list[Site] = field(default_factory=list)
    readers: list[Site] = field(default_factory=list)
    values: dict[str, None] = field(default_factory=dict)
    channels: int = 0

    @property
    def name(self) -> str:
        """The name of its group."""
        return f"rescale:{self.writers[0].name}"

    @property
    def norm(self) -> FoldedNorm | None:
        """What the batch norms in its writers say of its values; None where one has none.

        A residual stream is taken for the sum of all its writers.
        """
        found = None
        for writer in self.writers:
            norm = folded_norm(writer.node)
            if norm is None:
                return None
            found = norm if found is None else found.beside(norm)
        return found

    def norm_tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield what the group calls its norm's gain and shift, and their numbers."""
        norm = self.norm
        if norm is not None:
            yield f"{self.name}:gain", norm.gain.astype(np.float32)
            yield f"{self.name}:shift", norm.shift.astype(np.float32)

    def group(self) -> Group:
        """Return the stream as the core sees it."""
        first = self.writers[0]
        names = [reader.name for reader in self.readers]
        members = tuple(dict.fromkeys(names))
        kinds = {reader.kind for reader in self.readers}
        read = [reader.op.inputs[0] for reader in self.readers]
        # Linear readers of one value can take shifts and rotations, in their producer or by nodes
        # of their own before their products.
        takes = SCALE_ALONE
        if kinds == {"linear"} and len(set(read)) == 1:
            takes = EVERY
        is_plain = first.kind == "linear" and not first.activation
        is_direct = is_plain and len(self.values) == 1
        online = takes - {"scale"}
        if is_direct:
            online = frozenset()
        gain, shift = [name for name, _ in self.norm_tensors()] or ("", "")
        return Group(
            self.name,
            "rescale",
            members,
            first.name,
            self.channels,
            read[0],
            tuple(self.values),
            gain=gain,
            shift=shift,
            takes=takes,
            online=online,
            rectified=len(self.writers) == 1 and first.activation == "relu",
        )


def find_streams(sites: Mapping[str, Site]) -> tuple[Stream, ...]:
    """Return every stream whose writers and readers can all take factors."""
    by_last = {site.last: site for site in sites.values()}
    by_node = {site.node: site for site in sites.values()}
    found: list[Stream] = []
    taken: set[str] = set()
    for name, site in sites.items():
        if name in taken or site.kind not in ("conv", "linear"):
            continue
        walk = _Walk(site.kind, by_last, by_node)
        start = site.last.outputs[0]
        stream = walk.follow(start)
        if stream is None:
            continue
        found.append(stream)
        taken.update(writer.name for writer in stream.writers)
    return tuple(found)


class _Walk:
    """Follows values both ways until the stream is closed, or an op cannot take part."""

    def __init__(
        self,
        kind: str,
        by_last: Mapping[Node, Site],
        by_node: Mapping[Node, Site],
    ) -> None:
        self.kind = kind
        self.by_last = by_last
        self.by_node = by_node
        self.stream = Stream()
        self.pooled: set[str] = set()

    def follow(self, start: Value) -> Stream | None:
        """Return the closed stream that holds ``start``; None if there is none."""
        stream = self.stream
        pending = [start]
        while pending:
            value = pending.pop()
            name = name_of(value)
            if name in stream.values:
                continue
            stream.values[name] = None
            before = self._written(value)
            after = self._read(value)
            if before is None or after is None:
                return None
            pending += before
            pending += after
        return self._closed()

    def _closed(self) -> Stream | None:
        """Return the stream that was followed to its ends; None where channels do not fit."""
        stream = self.stream
        widths = {_written_channels(writer) for writer in stream.writers}
        if len(widths) != 1 or not stream.readers:
            return None
        stream.channels = widths.pop()
        for reader in stream.readers:
            if _read_channels(reader) != stream.channels:
                return None
        return stream

    def _written(self, value: Value) -> list[Value] | None:
        """Return the values that a value is made of; None where the stream cannot be followed."""
        node = value.producer()
        if node is None:
            return None
        site = self.by_last.get(node)
        if site is not None and site.kind == self.kind and _can_write(site):
            # The stream begins here: what this op reads is none of its values.
            self.stream.writers.append(site)
            return []
        if site is not None and _is_sum(site):
            return _inputs(site.node, (0, 1))
        if not self._passes(node):
            return None
        return _inputs(node, (0,))

    def _read(self, value: Value) -> list[Value] | None:
        """Return the values that are made of a value; None where a reader cannot take part."""
        if value.is_graph_output():
            return None
        is_pooled = name_of(value) in self.pooled
        further: list[Value] = []
        for node, index in value.uses():
            site = self.by_node.get(node)
            if site is not None and _is_sum(site):
                total = site.last.outputs[0]
                further.append(total)
                continue
            # Behind its first input an op has weights and the like.
            if index != 0:
                return None
            if self._passes(node):
                result = node.outputs[0]
                further.append(result)
                if is_pooled or node.op_type == _GLOBAL_POOLING:
                    self.pooled.add(name_of(result))
                continue
            if site is None or not self._can_read(site, is_pooled=is_pooled):
                return None
            self.stream.readers.append(site)
        return further

    def _can_read(self, site: Site, *, is_pooled: bool) -> bool:
        """True for ops of the stream's own type, and for linear ones behind a global pooling."""
        if takes(site, (self.kind,)):
            return True
        return is_pooled and takes(site, ("linear",))

    def _passes(self, node: Node) -> bool:
        """True for ops that keep channels apart and commute with positive factors."""
        if node.domain != "" or self.kind != "conv":
            return False
        if node.op_type in _FLATTENING:
            # After global pooling a sample is one number per channel, in whatever shape.
            source = producer_at(node, 0)
            return source is not None and source.op_type == _GLOBAL_POOLING
        return node.op_type in _POOLING


def _written_channels(writer: Site) -> int:
    weight = writer.held
    return weight.shape[weight.channel_axis]


def _read_channels(reader: Site) -> int:
    weight = reader.held
    if reader.kind == "linear":
        return weight.shape[1 - weight.channel_axis]
    # A convolution's weight holds the input channels of one group.
    attributes = reader.op.attributes
    groups = int(str(attributes.get("groups", 1)))
    return weight.shape[1] * groups


def _inputs(node: Node, indices: tuple[int, ...]) -> list[Value]:
    values = [node.inputs[index] for index in indices]
    return [value for value in values if value is not None]


def _keeps_factors(site: Site) -> bool:
    # A positive factor passes a ReLU; the limits of a ReLU6 would have to move with it.
    return site.activation in ("", "relu")


def _is_sum(site: Site) -> bool:
    is_of_two = site.kind == "add" and len(site.inputs) == 2
    return is_of_two and _keeps_factors(site)


def _can_write(site: Site) -> bool:
    return _keeps_factors(site) and owns_tensors(site)


def owns_tensors(site: Site) -> bool:
    """True if nobody else uses the site's weight and bias.

    Then both can be scaled under their names.
    """
    if site.weight is None or site.op.out_of_reach:
        return False
    weight = site.node.inputs[site.weight]
    if weight is None or not _is_read_once(weight):
        return False
    # A bias is an input of the main node, or of an Add that is fused into it.
    for node in (site.node, *_fused_nodes(site)):
        for value in node.inputs:
            if value is not None and value.name == site.bias:
                return _is_read_once(value)
    return True


def _is_read_once(value: Value) -> bool:
    readers = value.uses()
    return len(readers) == 1


def _fused_nodes(site: Site) -> Iterator[Node]:
    """Yield the nodes behind the main node that are fused into it, the last first."""
    node: Node | None = site.last
    while node is not None and node is not site.node:
        yield node
        producers = [v.producer() for v in node.inputs if v is not None]
        node = next(filter(None, producers), None)


def takes(site: Site, types: tuple[str, ...]) -> bool:
    """True if a site of one of these types can have its input channels multiplied."""
    if site.kind not in types:
        return False
    if site.weight is None or site.op.weight is None:
        return False
    return owns_tensors(site)
