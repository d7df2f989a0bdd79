"""Functional calls with weights of their own, as layers that a graph calls.

Such a call is ``F.linear(x, self.weight)``.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, Node, map_arg

from octavo.core.values.graph import Op

from .attention_arithmetic import attend
from .graph_products import in_parts, mark, products_of_parameters
from .layers_for_uses import linear_over

_CONVS: dict[Any, Any] = {
    torch.conv1d: nn.Conv1d,
    torch.conv2d: nn.Conv2d,
    torch.conv3d: nn.Conv3d,
}
WITH_WEIGHTS = (nn.functional.linear, *_CONVS, nn.functional.embedding)
_NAMES = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_SETTINGS = _NAMES[3:]
_PRODUCTS: dict[object, str] = {
    operator.matmul: "matmul",
    torch.matmul: "matmul",
    torch.bmm: "matmul",
    torch.baddbmm: "matmul",
    torch.einsum: "matmul",
    "matmul": "matmul",
    "bmm": "matmul",
    "__matmul__": "matmul",
    nn.functional.scaled_dot_product_attention: "attention",
    attend: "attention",
}
_Form = tuple[Any, ...]
_Forms = dict[str, list[_Form]]
_WHY = "torch has no batched integer product of two activations"


def layers_of_calls(root: nn.Module, graph: Graph) -> None:
    """Let a graph call layers in place of functions, where all readers of a parameter are products.

    The layers hold the parameters themselves and are added to the modules that own these; done
    twice, it finds them again.

    Args:
        root: A skeleton; layers are added to it.
        graph: Its graph; changed in place.
    """
    in_parts(graph)
    readers = _readers(graph)
    forms: _Forms = {}
    nodes = list(graph.nodes)
    for node in nodes:
        given = _given(root, node)
        if given is None:
            continue
        name = str(given["weight"].target)
        read_as = {_weight_name(reader) for reader in readers[name]}
        # What reads it otherwise needs the parameter where it is.
        if read_as != {name}:
            continue
        form = _form(node, given)
        path = _layer_path(name, form, forms)
        _put(root, path, node.target, given)
        with graph.inserting_before(node):
            call = graph.call_module(path, (given["input"],))
        node.replace_all_uses_with(call)
        graph.erase_node(node)
    # What is left may be written in other ways, or multiply by views of parameters.
    products_of_parameters(root, graph)
    _drop_unread(graph)


def _readers(graph: Graph) -> dict[str, list[Node]]:
    """Return name of a parameter -> the nodes that read it."""
    found: dict[str, list[Node]] = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            readers = found.setdefault(str(node.target), [])
            readers += node.users
    return found


def _drop_unread(graph: Graph) -> None:
    # A list, since the graph changes while it is read.
    nodes = list(graph.nodes)
    for node in reversed(nodes):
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)


def _form(node: Node, given: dict[str, Any]) -> _Form:
    """Return what makes two calls with one weight calls of one layer."""
    form: list[Any] = [node.target]
    for key in _NAMES[2:]:
        value = given.get(key)
        if isinstance(value, Node):
            value = str(value.target)
        form.append(value)
    return tuple(form)


def _layer_path(name: str, form: _Form, forms: _Forms) -> str:
    """Return where the layer stands that computes a form with a parameter.

    Args:
        name: Of the parameter.
        form: From :func:`_form`.
        forms: The forms of each parameter that were met so far; added to.
    """
    known = forms.setdefault(name, [])
    if form not in known:
        known.append(form)
    number = known.index(form)
    return f"{name}_layer{number or ''}"


def _arguments(node: Node) -> dict[str, Any]:
    by_place = zip(_NAMES, node.args, strict=False)
    return {**dict(by_place), **node.kwargs}


def _weight_name(node: Node) -> str:
    """Return the name of the parameter that a call multiplies by; empty for any other node."""
    if node.op != "call_function":
        return ""
    function = node.target
    if function is not nn.functional.linear and function not in _CONVS:
        return ""
    weight = _arguments(node).get("weight")
    if not isinstance(weight, Node) or weight.op != "get_attr":
        return ""
    return str(weight.target)


def _given(root: nn.Module, node: Node) -> dict[str, Any] | None:
    """Return a call's arguments by name, if a layer can stand for it."""
    if not _weight_name(node):
        return None
    given = _arguments(node)
    if not _is_parameter(root, given["weight"]):
        return None
    bias = given.get("bias")
    if bias is not None and not _is_parameter(root, bias):
        return None
    if not isinstance(given.get("input"), Node):
        return None
    # A layer's geometry is fixed when it is made.
    settings = [given.get(name) for name in _SETTINGS]
    computed: list[Node] = []
    map_arg(settings, computed.append)
    return None if computed else given


def _is_parameter(root: nn.Module, value: Any) -> bool:
    if not isinstance(value, Node) or value.op != "get_attr":
        return False
    return isinstance(_held(root, value), nn.Parameter)


def _held(root: nn.Module, node: Node) -> Any:
    """Return the tensor that a node reads."""
    path, _, leaf = str(node.target).rpartition(".")
    owner = root.get_submodule(path)
    return getattr(owner, leaf)


def _put(root: nn.Module, path: str, function: Any, given: dict[str, Any]) -> None:
    """Add the layer that computes a call to the module that owns its weight, if it is not there."""
    owner_path, _, leaf = path.rpartition(".")
    owner = root.get_submodule(owner_path)
    if leaf in owner._modules:
        return
    weight = _held(root, given["weight"])
    bias = given.get("bias")
    if bias is not None:
        bias = _held(root, bias)
    if function is nn.functional.linear:
        layer: nn.Module = linear_over(weight, bias)
    else:
        layer = _conv(function, weight, bias, given)
    name = str(given["weight"].target)
    mark(layer, name.rpartition(".")[2])
    owner.add_module(leaf, layer.eval())


def _conv(
    function: Any,
    weight: nn.Parameter,
    bias: nn.Parameter | None,
    given: dict[str, Any],
) -> nn.Module:
    settings: dict[str, Any] = {}
    for name in _SETTINGS:
        if name not in given:
            continue
        value = given[name]
        if isinstance(value, list):
            value = tuple(value)
        settings[name] = value
    made: nn.Module = _CONVS[function](
        weight.shape[1] * settings.get("groups", 1),
        weight.shape[0],
        tuple(weight.shape[2:]),
        bias=bias is not None,
        device="meta",
        **settings,
    )
    made._parameters["weight"] = weight
    if bias is not None:
        made._parameters["bias"] = bias
    return made


def products(graph: Graph) -> Iterable[tuple[Node, Op]]:
    """Yield the products of two activations in a graph, which no scheme reaches, as ops."""
    for node in graph.nodes:
        if node.op not in ("call_function", "call_method"):
            continue
        kind = _PRODUCTS.get(node.target)
        if kind is None:
            continue
        read: list[Node] = []
        map_arg((node.args, node.kwargs), read.append)
        inputs = tuple(n.name for n in read)
        outputs = (node.name,)
        yield node, Op(node.name, kind, inputs, outputs, out_of_reach=_WHY)
