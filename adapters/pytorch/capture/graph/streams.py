"""Streams of channels in a traced graph: values that share one factor per channel.

Residual sums, ReLU and pooling tie them together. A stream is written by convolutions, or by one
linear layer with a batch norm, and read by layers; dividing what is written and multiplying what
reads by one factor per channel leaves the function as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.fx import Node
from torch.nn import functional as F

from octavo.adapters.pytorch.capture.layers import Layer
from octavo.adapters.pytorch.capture.links import Link
from octavo.core.numerics.channels import EVERY, SCALE_ALONE
from octavo.core.values.graph import Group

from .fusing import ADDS, RELUS, Found
from .sites import Sites

_POOLING = {F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d}
_POOLING_MODULES = (
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
)
_FLATTENING = {torch.flatten, torch.squeeze, "flatten", "squeeze", "view", "reshape"}


@dataclass
class Stream:
    """One stream.

    Attributes:
        writers: Layers whose output channels are divided.
        readers: Layers whose input channels are multiplied.
        values: Names of all values that are divided, the first writer's first.
        ends: Names of the values that readers read.
        added: A sum lies in it.
    """

    writers: list[Layer] = field(default_factory=list)
    readers: list[Layer] = field(default_factory=list)
    values: dict[str, None] = field(default_factory=dict)
    ends: dict[str, None] = field(default_factory=dict)
    added: bool = False

    @property
    def channels(self) -> int:
        """How many factors; 0 where writers or readers differ."""
        written = {_written(layer) for layer in self.writers}
        read = {_read(layer) for layer in self.readers}
        widths = written | read
        return widths.pop() if len(widths) == 1 else 0

    def link(self) -> Link:
        """Return the stream as a link; its readers are in the order in which they were met."""
        first = self.writers[0]
        names = tuple(layer.op.name for layer in self.readers)
        name = f"{first.op.name} -> {names[0]}"
        takes, online = self._takes()
        norms = [writer.norm for writer in self.writers]
        gain = shift = ""
        if all(norms):
            gain, shift = f"{norms[0]}.weight", f"{norms[0]}.bias"
        is_sum = self.added and gain != ""
        if is_sum:
            gain, shift = f"{name}:gain", f"{name}:shift"
        group = Group(
            name,
            "rescale",
            names,
            producer=first.op.name,
            channels=self.channels,
            value=next(iter(self.ends)),
            values=tuple(self.values) if len(self.values) > 1 else (),
            gain=gain,
            shift=shift,
            takes=takes,
            online=online,
            rectified=not self.added and "relu" in first.fused,
        )
        divided = [name for writer in self.writers for name in _divided(writer)]
        summed = tuple(norms) if is_sum else ()
        members = tuple(self.readers)
        return Link(group, tuple(divided), members, "layer", summed=summed)

    def _takes(self) -> tuple[frozenset[str], frozenset[str]]:
        """Return what the stream takes, and what of it its readers do by themselves.

        Linear readers of one value shift and rotate it before their products.
        """
        kinds = {layer.op.type for layer in self.readers}
        takes = SCALE_ALONE
        if kinds == {"linear"} and len(self.ends) == 1:
            takes = EVERY
        return takes, takes - SCALE_ALONE


def _divided(writer: Layer) -> list[str]:
    """Return the names of the tensors in which a writer's channels are divided."""
    path = writer.norm or writer.path
    if not writer.op.bias:
        return [f"{path}.weight"]
    return [f"{path}.weight", f"{path}.bias"]


def _written(layer: Layer) -> int:
    weight = layer.op.weight
    assert weight is not None
    return weight.shape[weight.channel_axis]


def _read(layer: Layer) -> int:
    weight = layer.op.weight
    assert weight is not None
    if layer.op.type == "linear":
        return weight.shape[1 - weight.channel_axis]
    groups = layer.op.attributes.get("groups", 1)
    assert isinstance(groups, int)
    return weight.shape[1] * groups


def find_streams(sites: Sites, found: Found) -> Iterator[Stream]:
    """Yield every stream whose writers and readers can all take factors."""
    walk = _Walk(sites, found)
    taken: set[str] = set()
    for name, nodes in found.inner.items():
        layer = found.layers[name]
        if name in taken or not walk.can_write(layer):
            continue
        stream = walk.follow(nodes[-1], layer.op.type)
        if stream is None or not stream.readers or not stream.channels:
            continue
        taken.update(writer.op.name for writer in stream.writers)
        yield stream


class _Walk:
    """Follows values both ways until a stream is closed, or an op cannot take part."""

    def __init__(self, sites: Sites, found: Found) -> None:
        self._sites = sites
        self._layers = found.layers
        self._others = found.others
        self._starting = {nodes[0]: name for name, nodes in found.inner.items()}
        self._ending = {nodes[-1]: name for name, nodes in found.inner.items()}
        self._ends = {name: nodes[-1] for name, nodes in found.inner.items()}
        # The node of a fused sum -> the layer that takes it in.
        self._adding: dict[Node, str] = {}
        for name in found.others:
            sums = filter(_is_sum, found.inner[name])
            self._adding.update(dict.fromkeys(sums, name))

    def can_write(self, layer: Layer) -> bool:
        """True if what a layer writes can be divided in its weight, or in the gain of its norm.

        A linear layer without a norm is left to those that read it: they multiply what they read
        as they quantize it.
        """
        is_plain = set(layer.fused) <= {"add", "relu"}
        if not is_plain or layer.is_tied or layer.op.type not in ("conv", "linear"):
            return False
        if not layer.norm:
            return layer.op.type == "conv"
        norm = self._sites.modules[layer.norm]
        # A batch norm without a gain has nothing that could be divided.
        return getattr(norm, "weight", None) is not None

    def follow(self, start: Node, kind: str) -> Stream | None:
        """Return the closed stream that holds a value; None if there is none.

        Args:
            start: What a layer writes.
            kind: The type of layers that write and read here.
        """
        stream = Stream()
        pending = [start]
        met: set[Node] = set()
        while pending:
            value = pending.pop()
            if value in met:
                continue
            met.add(value)
            stream.values[self._sites.value_name(value)] = None
            before = self._before(value, kind, stream)
            after = self._after(value, kind, stream)
            if before is None or after is None:
                return None
            pending += before
            pending += after
        return stream

    def _before(self, value: Node, kind: str, stream: Stream) -> list[Node] | None:
        """Return the values that a value is made of; None where it cannot be followed."""
        name = self._ending.get(value)
        if name is not None:
            layer = self._layers[name]
            if layer.op.type != kind or not self.can_write(layer):
                return None
            stream.writers.append(layer)
            if name not in self._others:
                return []
            stream.added = True
            return [self._others[name]]
        if kind == "conv" and _is_sum(value):
            stream.added = True
            return _tensors(value.args)
        if self._passes(value, kind):
            return _tensors(value.args[:1])
        return None

    def _after(self, value: Node, kind: str, stream: Stream) -> list[Node] | None:
        """Return the values that are made of a value; None where a reader cannot take part."""
        further: list[Node] = []
        for user in value.users:
            name = self._adding.get(user)
            if name is not None:
                further.append(self._ends[name])
            elif kind == "conv" and _is_sum(user):
                further.append(user)
            elif user in self._starting:
                layer = self._layers[self._starting[user]]
                if not self._can_read(layer, value, user, kind):
                    return None
                stream.readers.append(layer)
                stream.ends[self._sites.value_name(value)] = None
            elif user.args[:1] == (value,) and self._passes(user, kind):
                further.append(user)
            else:
                return None
        return further

    def _can_read(self, layer: Layer, value: Node, call: Node, kind: str) -> bool:
        """True for layers of the stream's type, and linear ones where a sample is one number for
        each channel."""
        if layer.is_tied or call.args[:1] != (value,):
            return False
        if layer.op.type == kind:
            return True
        shape = self._sites.shape(value)
        is_row = shape is not None and len(shape) == 2
        return is_row and layer.op.type == "linear"

    def _passes(self, node: Node, kind: str) -> bool:
        """True for nodes that keep channels apart and commute with positive factors."""
        if self._sites.is_idle(node):
            return True
        module = self._sites.module(node)
        called = type(module) if module is not None else node.target
        if called in RELUS or called is nn.ReLU:
            return True
        if kind != "conv":
            return False
        if called in _POOLING or called in _POOLING_MODULES:
            return True
        is_flat = called in _FLATTENING or called is nn.Flatten
        return (is_flat and self._keeps_channels(node)) or self._is_pooled_mean(node)

    def _keeps_channels(self, node: Node) -> bool:
        """True for a flattening of what holds one number for each channel of a sample."""
        source = node.args[0]
        before = self._sites.shape(source) if isinstance(source, Node) else None
        after = self._sites.shape(node)
        if before is None or after is None or len(before) < 2:
            return False
        return after == before[:2] and all(size == 1 for size in before[2:])

    def _is_pooled_mean(self, node: Node) -> bool:
        """True for a mean over all spatial axes."""
        if node.target not in (torch.mean, "mean"):
            return False
        source = node.args[0] if node.args else None
        before = self._sites.shape(source) if isinstance(source, Node) else None
        after = self._sites.shape(node)
        if before is None or after is None or len(before) < 3:
            return False
        kept = (*before[:2], *(1,) * (len(before) - 2))
        return after in (before[:2], kept)


def _is_sum(node: Node) -> bool:
    """True for a plain sum of two tensors of the graph."""
    is_add = node.op == "call_function" and node.target in ADDS
    return is_add and not node.kwargs and len(_tensors(node.args)) == 2


def _tensors(args: Iterable[object]) -> list[Node]:
    return [arg for arg in args if isinstance(arg, Node)]
