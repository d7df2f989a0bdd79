"""Products by parameters in a traced graph, as calls of layers that hold these."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from torch import nn
from torch.fx import Graph, Node, Proxy, map_arg
from torch.fx.proxy import GraphAppendingTracer

from octavo.adapters.pytorch.loose_weights.forms import Form
from octavo.adapters.pytorch.loose_weights.in_parts import IN_PARTS
from octavo.adapters.pytorch.loose_weights.products import Use
from octavo.adapters.pytorch.loose_weights.refs import Ref, whole
from octavo.adapters.pytorch.loose_weights.uses import use_of

from .layers_for_uses import layer_for, obstacle
from .sources import note_source

_Arguments = tuple[tuple[Any, ...], dict[str, Any]]
_MARK = "stands_for_call"
_GETTERS: dict[Any, str] = {("T",): "t", ("mT",): "mt"}
"""What ``getattr`` is given -> the function that gives the same."""
_VIEWS = ("t", "transpose", "swapaxes", "permute", "contiguous", "detach", "getattr")


def mark(layer: nn.Module, leaf: str) -> None:
    """Note that a graph calls a layer in place of a function, and whose parameter it holds."""
    note_source(layer, leaf)
    for module in layer.modules():
        module.__dict__[_MARK] = True


def stands_for_call(layer: nn.Module) -> bool:
    """Return whether a graph calls a layer in place of a function."""
    return bool(layer.__dict__.get(_MARK))


def in_parts(graph: Graph) -> None:
    """Write functions of several weights as functions of one.

    Args:
        graph: Changed in place.
    """
    tracer = GraphAppendingTracer(graph)
    for node in list(graph.nodes):
        parts = IN_PARTS.get(_name(node))
        if parts is None or not _reads_parameter(node):
            continue
        proxies = partial(_proxy, tracer=tracer)
        args, kwargs = _mapped(node, proxies)
        with graph.inserting_before(node):
            result = parts(*args, **kwargs)
        if isinstance(result, Proxy):
            node.replace_all_uses_with(result.node)
            graph.erase_node(node)


class _CallByView(NamedTuple):
    """A node that multiplies by a parameter, or by a view of it.

    Attributes:
        node: What multiplies.
        source: The argument that is the parameter or the view.
        ref: Which view that is.
    """

    node: Node
    source: Node
    ref: Ref


def _proxy(node: Node, tracer: GraphAppendingTracer) -> Proxy:
    return Proxy(node, tracer)


@dataclass
class _Reading:
    """All that reads one parameter.

    Attributes:
        calls: Nodes that multiply by it, or by a view of it.
        known: Every reader is such a node.
    """

    calls: list[_CallByView] = field(default_factory=list)
    known: bool = True


def products_of_parameters(root: nn.Module, graph: Graph) -> None:
    """Let a graph call layers for parameters that are multiplied by, as they are or turned.

    All that reads such a parameter must be a product that a layer computes.

    Args:
        root: A skeleton; layers are added to it.
        graph: Its graph; changed in place.
    """
    read = [str(n.target) for n in graph.nodes if n.op == "get_attr"]
    # Each once, in the order in which they are met.
    for name in dict.fromkeys(read):
        path, _, leaf = name.rpartition(".")
        owner = root.get_submodule(path)
        held = owner._parameters.get(leaf)
        if held is not None and held.ndim >= 2 and held.is_floating_point():
            _replace_products(root, graph, name, held)
    graph.eliminate_dead_code(_is_impure)


def _replace_products(
    root: nn.Module, graph: Graph, name: str, held: nn.Parameter
) -> None:
    """Let layers do what one parameter is used for, if layers can do all of it."""
    tracer = GraphAppendingTracer(graph)
    reading = _reading(graph, name, held)
    if not reading.known:
        return
    uses: list[Use] = []
    for call in reading.calls:
        # Only now with proxies: what arranges values is to write nodes into the graph.
        use = _use(call, tracer)
        if use is None or not _fits_one_layer(use, held):
            return
        uses.append(use)
    path, _, leaf = name.rpartition(".")
    owner = root.get_submodule(path)
    children: dict[Form, str] = {}
    for call, use in zip(reading.calls, uses, strict=True):
        number = len(children)
        next_name = f"{leaf}_layer{number or ''}"
        child = children.setdefault(use.form, next_name)
        if child not in owner._modules:
            layer = layer_for(use.form, held)
            mark(layer, leaf)
            owner.add_module(child, layer)
        child_path = f"{path}.{child}" if path else child
        _call(tracer, call.node, use, child_path)


def _is_impure(node: Node) -> bool:
    """Return whether a node stays that nobody reads.

    Only views of parameters are looked through.
    """
    is_view = _name(node) in _VIEWS
    return not (is_view and _reads_parameter(node))


def _reads_parameter(node: Node) -> bool:
    return any(n.op == "get_attr" for n in node.all_input_nodes)


def _fits_one_layer(use: Use, held: nn.Parameter) -> bool:
    # A graph calls one layer at a time.
    if use.form.batch:
        return False
    return not obstacle(use.form, held)


def _call(tracer: GraphAppendingTracer, node: Node, use: Use, path: str) -> None:
    """Let a graph call a layer in place of a node."""
    graph = tracer.graph

    def layer(x: Proxy) -> Proxy:
        called = graph.call_module(path, (x.node,))
        return Proxy(called, tracer)

    with graph.inserting_before(node):
        result = use.run(layer)
    node.replace_all_uses_with(result.node)
    graph.erase_node(node)


def _reading(graph: Graph, name: str, held: nn.Parameter) -> _Reading:
    """Return what reads a parameter."""
    reading = _Reading()
    start = whole(held.shape)
    for node in graph.nodes:
        if node.op == "get_attr" and str(node.target) == name:
            _read(node, start, reading)
    return reading


def _read(node: Node, ref: Ref, reading: _Reading) -> None:
    """Take down what reads a node that is a view of the parameter."""
    for user in list(node.users):
        view = _view(user, node, ref)
        if view is not None:
            _read(user, view, reading)
            continue
        call = _CallByView(user, node, ref)
        if _use(call, None) is None:
            reading.known = False
        else:
            reading.calls.append(call)


def _use(call: _CallByView, tracer: GraphAppendingTracer | None) -> Use | None:
    """Return how a call is made of a layer's, its values as proxies where there is a tracer."""

    def one(n: Node) -> Any:
        if n is call.source:
            return call.ref
        return n if tracer is None else Proxy(n, tracer)

    args, kwargs = _mapped(call.node, one)
    return use_of(_name(call.node), args, kwargs)


def _mapped(node: Node, change: Callable[[Node], Any]) -> _Arguments:
    """Return a node's arguments with every node in them changed."""
    mapping: Any = map_arg
    given = (node.args, node.kwargs)
    args, kwargs = mapping(given, change)
    return tuple(args), dict(kwargs)


def _name(node: Node) -> str:
    """Return the name of the function or method that a node calls, without underscores."""
    if node.op == "call_method":
        return str(node.target).strip("_")
    if node.op == "call_function":
        return str(getattr(node.target, "__name__", "")).strip("_")
    return ""


def _view(node: Node, source: Node, ref: Ref) -> Ref | None:
    """Return what a node makes of a view of a parameter, if that is a view again."""
    if node.kwargs or not node.args:
        return None
    if node.args[0] is not source:
        return None
    name = _name(node)
    rest = node.args[1:]
    if name == "getattr":
        name = _GETTERS.get(rest, "")
        rest = ()
    if name in ("contiguous", "detach", "t", "mt"):
        return None if rest else _turned(ref, name)
    order = _order(rest)
    if order is None:
        return None
    if name in ("transpose", "swapaxes") and len(order) == 2:
        return ref.turned(*order)
    if name == "permute" and len(order) == len(ref.shape):
        return ref.permuted(order)
    return None


def _turned(ref: Ref, name: str) -> Ref | None:
    if name == "mt":
        return ref.turned()
    if name == "t":
        return ref.turned() if len(ref.shape) == 2 else None
    return ref


def _order(rest: tuple[Any, ...]) -> list[int] | None:
    """Return axes that are given one by one, or as one list; None where they are computed."""
    order = list(rest)
    if len(rest) == 1 and isinstance(rest[0], list | tuple):
        order = list(rest[0])
    if not all(isinstance(i, int) for i in order):
        return None
    return order
