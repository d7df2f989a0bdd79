"""Functional calls with weights of their own (``F.linear(x, self.weight)``), as layers that a graph calls."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch import fx, nn

from octavo.core.values.graph import Op

from .attention import attend
from .graph_products import in_parts, mark, products_of_parameters

_CONVS: dict[Any, Any] = {torch.conv1d: nn.Conv1d, torch.conv2d: nn.Conv2d, torch.conv3d: nn.Conv3d}
WITH_WEIGHTS = (nn.functional.linear, *_CONVS, nn.functional.embedding)
_NAMES = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_PRODUCTS: dict[object, str] = {
    operator.matmul: "matmul", torch.matmul: "matmul", torch.bmm: "matmul", torch.baddbmm: "matmul", torch.einsum: "matmul",
    "matmul": "matmul", "bmm": "matmul", "__matmul__": "matmul",
    nn.functional.scaled_dot_product_attention: "attention", attend: "attention",
}  # fmt: skip
_WHY = "torch has no batched integer product of two activations"


def layers_of_calls(root: nn.Module, graph: fx.Graph) -> None:
    """Let a graph call layers in place of functions, where all that reads a parameter are products that layers compute.

    The layers hold the parameters themselves and are added to the modules that own these; done twice, it finds them again.

    Args:
        root: A skeleton; layers are added to it.
        graph: Its graph; changed in place.
    """
    in_parts(graph)
    readers: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            readers.setdefault(str(node.target), []).extend(node.users)
    taken: dict[str, list[tuple[Any, ...]]] = {}
    for node in list(graph.nodes):
        given = _given(root, node)
        if given is None or not all(
            _weight_name(n) == _weight_name(node) for n in readers[str(given["weight"].target)]
        ):
            continue
        name = str(given["weight"].target)
        key = (
            node.target,
            *(
                given.get(k) if not isinstance(given.get(k), fx.Node) else str(given[k].target)
                for k in _NAMES[2:]
            ),
        )
        forms = taken.setdefault(name, [])
        if key not in forms:
            forms.append(key)
        number = forms.index(key)
        path = f"{name}_layer{number or ''}"
        _put(root, path, node.target, given)
        with graph.inserting_before(node):
            call = graph.call_module(path, (given["input"],))
        node.replace_all_uses_with(call)
        graph.erase_node(node)
    products_of_parameters(root, graph)
    for node in reversed(list(graph.nodes)):
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)


def _weight_name(node: fx.Node) -> str:
    """Return the name of the parameter that a call multiplies by; empty for any other node."""
    given = (
        dict(zip(_NAMES, node.args, strict=False)) | node.kwargs
        if node.op == "call_function"
        else {}
    )
    weight = given.get("weight")
    known = node.target is nn.functional.linear or node.target in _CONVS
    return (
        str(weight.target)
        if known and isinstance(weight, fx.Node) and weight.op == "get_attr"
        else ""
    )


def _given(root: nn.Module, node: fx.Node) -> dict[str, Any] | None:
    """Return a call's arguments by name, if a layer can stand for it."""
    if not _weight_name(node):
        return None
    given: dict[str, Any] = dict(zip(_NAMES, node.args, strict=False)) | node.kwargs
    bias = given.get("bias")
    held = [given["weight"], *([bias] if bias is not None else [])]
    if not all(
        isinstance(n, fx.Node)
        and n.op == "get_attr"
        and isinstance(_held(root, str(n.target)), nn.Parameter)
        for n in held
    ):
        return None
    computed: list[fx.Node] = []
    fx.map_arg([given.get(k) for k in _NAMES[3:]], computed.append)
    return given if not computed and isinstance(given.get("input"), fx.Node) else None


def _held(root: nn.Module, name: str) -> Any:
    path, _, leaf = name.rpartition(".")
    return getattr(root.get_submodule(path), leaf)


def _put(root: nn.Module, path: str, function: Any, given: dict[str, Any]) -> None:
    owner, _, leaf = path.rpartition(".")
    if leaf in root.get_submodule(owner)._modules:
        return
    weight = _held(root, str(given["weight"].target))
    bias = None if given.get("bias") is None else _held(root, str(given["bias"].target))
    layer: nn.Module
    if function is nn.functional.linear:
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    else:
        form: Any = {
            k: tuple(given[k]) if isinstance(given[k], list) else given[k]
            for k in _NAMES[3:]
            if k in given
        }
        channels = weight.shape[1] * form.get("groups", 1)
        layer = _CONVS[function](
            channels,
            weight.shape[0],
            tuple(weight.shape[2:]),
            bias=bias is not None,
            device="meta",
            **form,
        )
    layer._parameters["weight"] = weight
    if bias is not None:
        layer._parameters["bias"] = bias
    mark(layer, str(given["weight"].target).rpartition(".")[2])
    root.get_submodule(owner).add_module(leaf, layer.eval())


def products(graph: fx.Graph) -> Iterable[tuple[fx.Node, Op]]:
    """Yield the products of two activations in a graph, which no scheme reaches, as ops."""
    for node in graph.nodes:
        kind = _PRODUCTS.get(node.target) if node.op in ("call_function", "call_method") else None
        if kind is not None:
            read: list[fx.Node] = []
            fx.map_arg((node.args, node.kwargs), read.append)
            yield (
                node,
                Op(node.name, kind, tuple(n.name for n in read), (node.name,), out_of_reach=_WHY),
            )
