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
    for path in _tied_tables(ops, order):
        if path not in order:
            order.append(path)
    return order


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
        read = seen.values.get(path, f"{path}:in")
        op = replace(op, inputs=(read,))
    op = with_shapes(op, shape)
    norm = _folded_norm(op, path, root, seen)
    if norm:
        op = replace(op, bias=op.bias or f"{path}.bias")
    return _with_follower(op, path, norm, seen)


def _with_follower(op: Op, path: str, norm: str, seen: Trace) -> Layer:
    """Return a layer with the activation function behind it, where its kernel takes that in."""
    act = seen.follower(norm or path)
    kind = seen.kinds.get(act, "")
    taken = _TAKEN.get(op.type, ())
    if act and kind in taken:
        attributes = {**op.attributes, "fused": kind}
        op = replace(op, attributes=attributes)
        layer = Layer(op, path, norm, (kind,), act)
    else:
        layer = Layer(op, path, norm)
    if layer.end == path:
        return layer
    op = replace(op, outputs=(f"{layer.end}:out",))
    return replace(layer, op=op)


def _folded_norm(op: Op, path: str, root: nn.Module, seen: Trace) -> str:
    """Return the path of the batch norm that is folded into a layer; empty if there is none."""
    after = seen.follower(path)
    if not after or seen.kinds[after] != BATCH_NORM:
        return ""
    norm = root.get_submodule(after)
    shape = seen.shapes.get(path)
    return after if folds(op, norm, shape) else ""


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
        op = layer.op
        if op.type == "linear" and "routed" not in op.attributes:
            readers.setdefault(op.inputs[0], []).append(layer)
    modules = dict(root.named_modules())
    for value, members in readers.items():
        is_called_once = all(seen.calls[layer.path] == 1 for layer in members)
        if not is_called_once or any(layer.is_tied for layer in members):
            continue
        source = value.removesuffix(":out")
        read_by = {layer.path for layer in members}
        module = modules.get(source)
        is_exclusive = module is not None and set(seen.readers(source)) == read_by
        if module is None or not is_norm(module):
            yield input_link(members, value)
        elif is_exclusive:
            yield Link.of_norm(source, module, members, value)
        else:
            yield input_link(members, value, source, module)


def decided_together(
    root: nn.Module, ops: Mapping[str, Op], layers: Iterable[Layer]
) -> Iterator[Group]:
    """Yield the layers that take one decision: experts of one mixture, and matrices of one
    parameter."""
    for name, paths in expert_groups(root):
        experts = tuple(ops[path].name for path in paths)
        yield Group(name, "scheme", experts)
    names = {layer.path: layer.op.name for layer in layers}
    for path, module in root.named_modules():
        if not isinstance(module, Batched):
            continue
        paths_of_items = [f"{path}.{i}" for i in range(len(module))]
        members = tuple(names[item] for item in paths_of_items if item in names)
        if len(members) > 1:
            yield Group(path, "scheme", members)


def _tied_tables(ops: Mapping[str, Op], called: Collection[str]) -> list[str]:
    """Return tables that share their weight with a layer that is called: left alone, they would
    hold it in float."""
    held: set[str] = set()
    for path in called:
        held.update(_held_by(ops[path]))
    tied = []
    for path, op in ops.items():
        if op.type == "embedding" and not held.isdisjoint(_held_by(op)):
            tied.append(path)
    return tied


def _held_by(op: Op) -> list[str]:
    return [weight.name for weight in op.weights]
