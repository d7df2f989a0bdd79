"""Streams: values that share one factor per channel, because residual sums, ReLU and pooling tie them together.

A stream is written by convolutions (or linear ops), summed, pooled, and read by convolutions or linear ops. Dividing what
is written and multiplying what reads by one factor per channel leaves the function as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import onnx_ir as ir

from octavo.core.numerics.channels import EVERY, SCALE_ALONE
from octavo.core.values.graph import Group

if TYPE_CHECKING:
    from .sites import Site

"""What linear readers can take, in their producer or by nodes of their own before their products."""
_FLATTENING = frozenset({"Flatten", "Reshape", "Squeeze"})


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
        members = tuple(dict.fromkeys(r.op.name for r in self.readers))
        value = self.readers[0].op.inputs[0]
        direct = len(self.values) == 1 and not first.activation and first.op.type == "linear"
        together = all(r.op.type == "linear" and r.op.inputs[0] == value for r in self.readers)
        takes = EVERY if together else SCALE_ALONE
        online = frozenset() if direct else takes - {"scale"}
        return Group(
            f"rescale:{first.op.name}",
            "rescale",
            members,
            first.op.name,
            self.channels,
            value,
            tuple(self.values),
            takes=takes,
            online=online,
        )


def find_streams(sites: Mapping[str, Site]) -> tuple[Stream, ...]:
    """Return every stream whose writers and readers can all take factors."""
    by_last = {site.last: site for site in sites.values()}
    by_node = {site.node: site for site in sites.values()}
    found: list[Stream] = []
    taken: set[str] = set()
    for name, site in sites.items():
        if name in taken or site.op.type not in ("conv", "linear"):
            continue
        stream = _Walk(site.op.type, by_last, by_node).follow(site.last.outputs[0])
        if stream is not None:
            found.append(stream)
            taken.update(w.op.name for w in stream.writers)
    return tuple(found)


class _Walk:
    """Follows values both ways until the stream is closed, or an op is met that cannot take part."""

    def __init__(
        self, kind: str, by_last: Mapping[ir.Node, Site], by_node: Mapping[ir.Node, Site]
    ) -> None:
        self.kind = kind
        self.by_last = by_last
        self.by_node = by_node
        self.stream = Stream()
        self.pooled: set[str] = set()

    def follow(self, start: ir.Value) -> Stream | None:
        """Return the closed stream that holds ``start``; None if there is none."""
        pending = [start]
        while pending:
            value = pending.pop()
            if (value.name or "") in self.stream.values:
                continue
            self.stream.values[value.name or ""] = None
            before, after = self._written(value), self._read(value)
            if before is None or after is None:
                return None
            pending += [*before, *after]
        widths = {
            w.op.weight.shape[w.op.weight.channel_axis]
            for w in self.stream.writers
            if w.op.weight is not None
        }
        if len(widths) != 1 or not self.stream.readers:
            return None
        self.stream.channels = widths.pop()
        return self.stream if all(self._fits(r) for r in self.stream.readers) else None

    def _fits(self, reader: Site) -> bool:
        weight = reader.op.weight
        assert weight is not None
        if reader.op.type == "linear":
            return weight.shape[1 - weight.channel_axis] == self.stream.channels
        return (
            weight.shape[1] * int(str(reader.op.attributes.get("groups", 1)))
            == self.stream.channels
        )

    def _written(self, value: ir.Value) -> list[ir.Value] | None:
        node = value.producer()
        site = self.by_last.get(node) if node is not None else None
        if node is None:
            return None
        if site is not None and site.op.type == self.kind and _writes(site):
            self.stream.writers.append(site)
            return []
        if (
            site is not None
            and site.op.type == "add"
            and len(site.inputs) == 2
            and site.activation in ("", "relu")
        ):
            return _values(site.node, (0, 1))
        return _values(node, (0,)) if self._passes(node) else None

    def _read(self, value: ir.Value) -> list[ir.Value] | None:
        if value.is_graph_output():
            return None
        further: list[ir.Value] = []
        for node, index in value.uses():
            site = self.by_node.get(node)
            if (
                site is not None
                and site.op.type == "add"
                and len(site.inputs) == 2
                and site.activation in ("", "relu")
            ):
                further.append(site.last.outputs[0])
            elif index == 0 and self._passes(node):
                further.append(node.outputs[0])
                if node.op_type == "GlobalAveragePool" or (value.name or "") in self.pooled:
                    self.pooled.add(node.outputs[0].name or "")
            elif (site is not None and index == 0 and takes(site, (self.kind,))) or (
                site is not None
                and index == 0
                and (value.name or "") in self.pooled
                and takes(site, ("linear",))
            ):
                self.stream.readers.append(site)
            else:
                return None
        return further

    def _passes(self, node: ir.Node) -> bool:
        """True for ops that keep channels apart and commute with positive factors."""
        if node.domain != "" or self.kind != "conv":
            return False
        if node.op_type in _FLATTENING:
            # After global pooling a sample is one number per channel, in whatever shape.
            source = node.inputs[0].producer() if node.inputs[0] is not None else None
            return source is not None and source.op_type == "GlobalAveragePool"
        return node.op_type in ("MaxPool", "GlobalAveragePool", "AveragePool")


def _values(node: ir.Node, indices: tuple[int, ...]) -> list[ir.Value]:
    return [v for i in indices if (v := node.inputs[i]) is not None]


def _writes(site: Site) -> bool:
    return site.activation in ("", "relu") and owns_tensors(site)


def owns_tensors(site: Site) -> bool:
    """True if nobody else uses the site's weight and bias, so that both can be scaled under their names."""
    weight = site.node.inputs[site.weight] if site.weight is not None else None
    if weight is None or len(weight.uses()) != 1 or site.op.out_of_reach:
        return False
    bias = next(
        (
            v
            for n in (site.node, *_nodes_between(site))
            for v in n.inputs
            if v is not None and v.name == site.bias
        ),
        None,
    )
    return bias is None or len(bias.uses()) == 1


def _nodes_between(site: Site) -> Iterator[ir.Node]:
    node: ir.Node | None = site.last
    while node is not None and node is not site.node:
        yield node
        node = next(
            (p for v in node.inputs if v is not None and (p := v.producer()) is not None), None
        )


def takes(site: Site, types: tuple[str, ...]) -> bool:
    """True if a site of one of these types can have its input channels multiplied."""
    return (
        site.op.type in types
        and site.weight is not None
        and site.op.weight is not None
        and owns_tensors(site)
    )
