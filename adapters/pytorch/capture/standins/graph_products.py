"""Products by parameters in a traced graph, as calls of layers that hold these."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn
from torch.fx.proxy import GraphAppendingTracer

from octavo.adapters.pytorch.loose_weights.in_parts import IN_PARTS
from octavo.adapters.pytorch.loose_weights.uses import Form, Ref, Use, turned, use_of

from .parameters import layer_for, obstacle
from .sources import note_source

_MARK = "stands_for_call"


def mark(layer: nn.Module, leaf: str) -> None:
    """Note that a graph calls a layer in place of a function, and whose parameter it holds."""
    note_source(layer, leaf)
    for module in layer.modules():
        module.__dict__[_MARK] = True


def stands_for_call(layer: nn.Module) -> bool:
    """True for a layer that a graph calls in place of a function."""
    return bool(layer.__dict__.get(_MARK))


def in_parts(graph: fx.Graph) -> None:
    """Write functions of several weights as functions of one.

    Args:
        graph: Changed in place.
    """
    tracer = GraphAppendingTracer(graph)
    for node in list(graph.nodes):
        parts = IN_PARTS.get(_name(node))
        if parts is None or not any(n.op == "get_attr" for n in node.all_input_nodes):
            continue
        args, kwargs = _mapped(node, lambda n: fx.Proxy(n, tracer))
        with graph.inserting_before(node):
            result = parts(*args, **kwargs)
        if isinstance(result, fx.Proxy):
            node.replace_all_uses_with(result.node)
            graph.erase_node(node)


@dataclass
class _Reading:
    """All that reads one parameter.

    Attributes:
        calls: Nodes that multiply by it, or by a view of it, with what the arguments are.
        known: Every reader is such a node.
    """

    calls: list[tuple[fx.Node, fx.Node, Ref]] = field(default_factory=list)
    known: bool = True


def products_of_parameters(root: nn.Module, graph: fx.Graph) -> None:
    """Let a graph call layers where all that reads a parameter, as it is or turned, multiplies by it.

    Args:
        root: A skeleton; layers are added to it.
        graph: Its graph; changed in place.
    """
    tracer = GraphAppendingTracer(graph)
    names = dict.fromkeys(str(n.target) for n in graph.nodes if n.op == "get_attr")
    for name in names:
        path, _, leaf = name.rpartition(".")
        owner = root.get_submodule(path)
        held = owner._parameters.get(leaf)
        if held is None or held.ndim < 2 or not held.is_floating_point():
            continue
        reading = _Reading()
        start = Ref(tuple(held.shape), tuple(range(held.ndim)))
        for node in [n for n in graph.nodes if n.op == "get_attr" and str(n.target) == name]:
            _read(node, start, reading)
        uses = [(node, _use(node, source, ref, tracer)) for node, source, ref in reading.calls]
        if not reading.known or not uses:
            continue
        found = [(node, use) for node, use in uses if use is not None and not _bars(use, held)]
        if len(found) < len(uses):
            continue
        children: dict[Form, str] = {}
        for node, use in found:
            child = children.setdefault(use.form, f"{leaf}_layer{len(children) or ''}")
            if child not in owner._modules:
                layer = layer_for(use.form, held)
                mark(layer, leaf)
                owner.add_module(child, layer)
            _call(graph, tracer, node, use, f"{path}.{child}" if path else child)
    graph.eliminate_dead_code(_is_impure)


def _is_impure(node: fx.Node) -> bool:
    """Only views of parameters are looked through: whatever else nobody reads stays."""
    return not (_is_view(node) and any(n.op == "get_attr" for n in node.all_input_nodes))


def _bars(use: Use, held: nn.Parameter) -> bool:
    # A graph calls one layer at a time.
    return bool(use.form.batch) or bool(obstacle(use.form, held))


def _call(
    graph: fx.Graph, tracer: GraphAppendingTracer, node: fx.Node, use: Use, path: str
) -> None:
    with graph.inserting_before(node):
        result = use.run(lambda x: fx.Proxy(graph.call_module(path, (x.node,)), tracer))
    node.replace_all_uses_with(result.node)
    graph.erase_node(node)


def _read(node: fx.Node, ref: Ref, reading: _Reading) -> None:
    for user in list(node.users):
        view = _view(user, node, ref)
        if view is not None:
            _read(user, view, reading)
        elif use_of(_name(user), *_given(user, node, ref, None)) is not None:
            reading.calls.append((user, node, ref))
        else:
            reading.known = False


def _use(node: fx.Node, source: fx.Node, ref: Ref, tracer: GraphAppendingTracer) -> Use | None:
    return use_of(_name(node), *_given(node, source, ref, tracer))


def _given(
    node: fx.Node, source: fx.Node, ref: Ref, tracer: GraphAppendingTracer | None
) -> tuple[Any, Any]:
    """Return a node's arguments with the view of the parameter in its place, values as proxies where there is a tracer."""

    def one(n: fx.Node) -> Any:
        if n is source:
            return ref
        return n if tracer is None else fx.Proxy(n, tracer)

    return _mapped(node, one)


def _mapped(
    node: fx.Node, change: Callable[[fx.Node], Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return a node's arguments with every node in them changed."""
    mapping: Any = fx.map_arg
    args, kwargs = mapping((node.args, node.kwargs), change)
    return tuple(args), dict(kwargs)


def _name(node: fx.Node) -> str:
    """Return the name of the function or method that a node calls, without underscores."""
    if node.op == "call_method":
        return str(node.target).strip("_")
    return (
        str(getattr(node.target, "__name__", "")).strip("_") if node.op == "call_function" else ""
    )


def _is_view(node: fx.Node) -> bool:
    return _name(node) in (
        "t",
        "transpose",
        "swapaxes",
        "permute",
        "contiguous",
        "detach",
        "getattr",
    )


def _view(node: fx.Node, source: fx.Node, ref: Ref) -> Ref | None:
    """Return what a node makes of a view of a parameter, if that is a view again."""
    name, rest = _name(node), node.args[1:]
    if not node.args or node.args[0] is not source or node.kwargs:
        return None
    if name in ("contiguous", "detach") and not rest:
        return ref
    if (name == "t" and not rest) or (name == "getattr" and rest == ("T",)):
        return turned(ref) if len(ref.shape) == 2 else None
    if name == "getattr" and rest == ("mT",):
        return turned(ref)
    plain: list[Any] = (
        list(rest[0]) if len(rest) == 1 and isinstance(rest[0], list | tuple) else list(rest)
    )
    if not all(isinstance(i, int) for i in plain):
        return None
    if name in ("transpose", "swapaxes") and len(plain) == 2:
        return turned(ref, *plain)
    if name == "permute" and len(plain) == len(ref.shape):
        shape, axes = (tuple(v[i] for i in plain) for v in (ref.shape, ref.axes))
        return Ref(shape, axes, ref.picked)
    return None
