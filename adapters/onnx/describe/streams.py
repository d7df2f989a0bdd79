"""Streams: values that share one factor per channel.

Residual sums, ReLU and pooling tie them together. A stream is written by convolutions (or linear
ops), summed, pooled, and read by convolutions or linear ops. Dividing what is written and
multiplying what reads by one factor per channel leaves the function as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from onnx_ir import Node, Value

from octavo.adapters.onnx.prepare.patterns import producer_at
from octavo.core.numerics.channels import EVERY, SCALE_ALONE
from octavo.core.values.graph import Group

from .site import Site

_FLATTENING = frozenset({"Flatten", "Reshape", "Squeeze"})
_POOLING = frozenset({"MaxPool", "GlobalAveragePool", "AveragePool"})


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

    def group(self) -> Group:
        """Return the stream as the core sees it."""
        first = self.writers[0]
        members = tuple(dict.fromkeys(r.name for r in self.readers))
        value = self.readers[0].op.inputs[0]
        is_plain = first.kind == "linear" and not first.activation
        is_direct = is_plain and len(self.values) == 1
        # Linear readers of one value can take shifts and rotations, in their producer or by nodes
        # of their own before their products.
        are_linear = all(r.kind == "linear" for r in self.readers)
        read_one_value = all(r.op.inputs[0] == value for r in self.readers)
        takes = SCALE_ALONE
        if are_linear and read_one_value:
            takes = EVERY
        return Group(
            f"rescale:{first.name}",
            "rescale",
            members,
            first.name,
            self.channels,
            value,
            tuple(self.values),
            takes=takes,
            online=frozenset() if is_direct else takes - {"scale"},
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
        stream = walk.follow(site.last.outputs[0])
        if stream is not None:
            found.append(stream)
            taken.update(w.name for w in stream.writers)
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
            name = value.name or ""
            if name in stream.values:
                continue
            stream.values[name] = None
            before = self._written(value)
            after = self._read(value)
            if before is None or after is None:
                return None
            pending += [*before, *after]
        widths = set()
        for writer in stream.writers:
            weight = writer.held
            widths.add(weight.shape[weight.channel_axis])
        if len(widths) != 1 or not stream.readers:
            return None
        stream.channels = widths.pop()
        if not all(self._fits(r) for r in stream.readers):
            return None
        return stream

    def _fits(self, reader: Site) -> bool:
        """True if a reader's input has as many channels as the stream."""
        weight = reader.held
        if reader.kind == "linear":
            return weight.shape[1 - weight.channel_axis] == self.stream.channels
        groups = int(str(reader.op.attributes.get("groups", 1)))
        return weight.shape[1] * groups == self.stream.channels

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
        is_pooled = (value.name or "") in self.pooled
        further: list[Value] = []
        for node, index in value.uses():
            site = self.by_node.get(node)
            if site is not None and _is_sum(site):
                further.append(site.last.outputs[0])
            elif index == 0 and self._passes(node):
                result = node.outputs[0]
                further.append(result)
                if node.op_type == "GlobalAveragePool" or is_pooled:
                    self.pooled.add(result.name or "")
            elif (
                site is not None
                and index == 0
                and self._can_read(site, is_pooled=is_pooled)
            ):
                self.stream.readers.append(site)
            else:
                return None
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
            return source is not None and source.op_type == "GlobalAveragePool"
        return node.op_type in _POOLING


def _inputs(node: Node, indices: tuple[int, ...]) -> list[Value]:
    return [v for i in indices if (v := node.inputs[i]) is not None]


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
    if weight is None or len(weight.uses()) != 1:
        return False
    for node in (site.node, *_fused_nodes(site)):
        for value in node.inputs:
            if value is not None and value.name == site.bias:
                return len(value.uses()) == 1
    return True


def _fused_nodes(site: Site) -> Iterator[Node]:
    """Yield the nodes behind the main node that are fused into it, the last first."""
    node: Node | None = site.last
    while node is not None and node is not site.node:
        yield node
        producers = (v.producer() for v in node.inputs if v is not None)
        node = next((p for p in producers if p is not None), None)


def takes(site: Site, types: tuple[str, ...]) -> bool:
    """True if a site of one of these types can have its input channels multiplied."""
    if site.kind not in types or site.weight is None or site.op.weight is None:
        return False
    return owns_tensors(site)
