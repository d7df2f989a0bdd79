"""The layers of a module tree, with what a run showed to follow them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace

from torch import nn

from octavo.adapters.pytorch.capture.standins.experts import expert_groups
from octavo.adapters.pytorch.kernels.posts import POSTS
from octavo.adapters.pytorch.loose_weights.place import Batched
from octavo.core.values.graph import UNREACHED, Group, Op

from .folding import folds
from .layers import Layer, with_shapes
from .links import Link, input_link
from .norms import is_norm
from .trace import BATCH_NORM, Trace

_TAKEN: Mapping[str, Collection[str]] = {
    "linear": POSTS,
    "conv": ("relu",),
    "conv_transpose": ("relu",),
}
"""Op type -> activation functions that its kernel takes in."""


def order_of(
    ops: Mapping[str, Op], routed: Iterable[str], seen: Trace | None
) -> list[str]:
    """Return the paths of the layers that a recipe may quantize, in execution order.

    Args:
        ops: Path -> op of each layer of the tree.
        routed: Paths of the experts.
        seen: What the example's run showed; None without an example.
    """
    if seen is None:
        return list(ops)
    # Experts that no token of the example was routed to are there for other tokens.
    called = (path for path in seen.order if path in ops)
    order = list(dict.fromkeys([*called, *routed]))
    return order + [path for path in _tied_tables(ops, order) if path not in order]


def layer_of(op: Op, path: str, root: nn.Module, seen: Trace | None) -> Layer:
    """Return a layer with the batch norm and the activation function that its kernel takes in.

    Args:
        op: The layer's op.
        path: Of the layer.
        root: The module tree.
        seen: What runs showed; None where there was none.
    """
    if seen is None:
        return Layer(op, path)
    shape = seen.shapes.get(path)
    if not path:
        return Layer(with_shapes(op, shape), path)
    if path not in seen.calls:
        return Layer(op, path)
    if seen.calls[path] == 1:
        op = replace(op, inputs=(seen.values.get(path, f"{path}:in"),))
    op = with_shapes(op, shape)
    norm = _folded_norm(op, path, root, seen)
    if norm:
        op = replace(op, bias=op.bias or f"{path}.bias")
    act = seen.follower(norm or path)
    kind = seen.kinds.get(act, "")
    if not act or kind not in _TAKEN.get(op.type, ()):
        layer = Layer(op, path, norm)
    else:
        op = replace(op, attributes={**op.attributes, "fused": kind})
        layer = Layer(op, path, norm, (kind,), act)
    if layer.end == path:
        return layer
    return replace(layer, op=replace(op, outputs=(f"{layer.end}:out",)))


def _folded_norm(op: Op, path: str, root: nn.Module, seen: Trace) -> str:
    """Return the path of the batch norm that is folded into a layer; empty if there is none."""
    after = seen.follower(path)
    if not after or seen.kinds[after] != BATCH_NORM:
        return ""
    return after if folds(op, root.get_submodule(after), seen.shapes.get(path)) else ""


def unreached(op: Op) -> Op:
    """Return the op of a layer that no batch reached.

    It claims no weight: what nothing reads is none of the weights that the forward uses.
    """
    return replace(op, weight=None, further=(), bias=None, out_of_reach=UNREACHED)


def links_of(root: nn.Module, layers: Iterable[Layer], seen: Trace) -> Iterator[Link]:
    """Yield norm -> layers links, and for every other value that only linear layers read a scaling
    of its own."""
    readers: dict[str, list[Layer]] = {}
    for layer in layers:
        if layer.op.type == "linear" and "routed" not in layer.op.attributes:
            readers.setdefault(layer.op.inputs[0], []).append(layer)
    modules = dict(root.named_modules())
    for value, members in readers.items():
        if any(seen.calls[layer.path] != 1 or layer.is_tied for layer in members):
            continue
        source = value.removesuffix(":out")
        read_by = {layer.path for layer in members}
        is_exclusive = source in modules and set(seen.readers(source)) == read_by
        if is_exclusive and is_norm(modules[source]):
            yield Link.of_norm(source, modules[source], members, value)
        else:
            yield input_link(members, value)


def decided_together(
    root: nn.Module, ops: Mapping[str, Op], layers: Iterable[Layer]
) -> Iterator[Group]:
    """Yield the layers that take one decision: experts of one mixture, and matrices of one
    parameter."""
    for name, paths in expert_groups(root):
        yield Group(name, "scheme", tuple(ops[path].name for path in paths))
    names = {layer.path: layer.op.name for layer in layers}
    for path, module in root.named_modules():
        if not isinstance(module, Batched):
            continue
        items = (names.get(f"{path}.{i}") for i in range(len(module)))
        members = tuple(name for name in items if name is not None)
        if len(members) > 1:
            yield Group(path, "scheme", members)


def _tied_tables(ops: Mapping[str, Op], called: Collection[str]) -> list[str]:
    """Return tables that share their weight with a layer that is called: left alone, they would
    hold it in float."""
    held = {weight.name for path in called for weight in ops[path].weights}
    tables = (path for path, op in ops.items() if op.type == "embedding")
    return [
        path
        for path in tables
        if any(weight.name in held for weight in ops[path].weights)
    ]
