"""Over which values of a traced graph channel scales may be moved."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.fx import Node

from octavo.adapters.pytorch.capture.layers import Layer
from octavo.adapters.pytorch.capture.links import Link, input_link
from octavo.adapters.pytorch.capture.norms import is_norm

from .fusing import Found
from .sites import Sites
from .streams import find_streams

_LayerAt = dict[Node, Layer]
"""First node of a layer -> the layer."""


def links_of(sites: Sites, found: Found) -> Iterator[Link]:
    """Yield norm -> layers and convolution -> convolution links, then one for each other input of
    linear layers."""
    layer_at: _LayerAt = {}
    for name, nodes in found.inner.items():
        layer_at[nodes[0]] = found.layers[name]
    linked: set[str] = set()
    for link in _norm_links(sites, layer_at):
        linked.update(layer.op.name for layer in link.members)
        yield link
    for stream in find_streams(sites, found):
        linked.update(layer.op.name for layer in stream.readers)
        yield stream.link()
    yield from _input_links(sites, found, linked)


def _norms(sites: Sites) -> Iterator[tuple[Node, nn.Module]]:
    for node in sites.graph.nodes:
        module = sites.module(node)
        if module is not None and is_norm(module) and sites.calls_once(node):
            yield node, module


def _norm_links(sites: Sites, layer_at: _LayerAt) -> Iterator[Link]:
    for node, module in _norms(sites):
        members = _readers(node, layer_at, "linear")
        if members:
            yield Link.of_norm(str(node.target), module, members, node.name)


def _input_links(sites: Sites, found: Found, linked: set[str]) -> Iterator[Link]:
    # What a residual reads too is changed by the linear readers alone.
    writers = {node.name: (str(node.target), norm) for node, norm in _norms(sites)}
    readers: dict[str, list[Layer]] = {}
    for name in found.inner:
        layer = found.layers[name]
        if layer.op.type == "linear" and name not in linked:
            value = layer.op.inputs[0]
            readers.setdefault(value, []).append(layer)
    for value, members in readers.items():
        if not any(layer.is_tied for layer in members):
            yield input_link(members, value, *writers.get(value, ()))


def _readers(node: Node, layer_at: _LayerAt, kind: str) -> list[Layer]:
    """Return the layers that read a node's value.

    None if anything else reads it, or one of them is of another type or shares its weight.
    """
    found: list[Layer] = []
    for user in node.users:
        layer = layer_at.get(user)
        if layer is None or layer.op.type != kind or layer.is_tied:
            return []
        found.append(layer)
    return found
