"""Layers in the place of the operators that a program of torch.export calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn

_ATEN = torch.ops.aten
_WEIGHT, _BIAS = "weight", "bias"
_BATCHES = "num_batches_tracked"
_BATCH_NORMS = {
    2: nn.BatchNorm1d,
    3: nn.BatchNorm1d,
    4: nn.BatchNorm2d,
    5: nn.BatchNorm3d,
}
"""Axes of the input -> the batch norm's class."""
_KINDS = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d,
    nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Embedding,
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm,
)  # fmt: skip
"""Layers that are put in: a second call of one finds it in its holder's place."""

Given = Mapping[str, Any]
"""An operator's arguments by name, defaults included."""
Made = tuple[str, fx.Node, nn.Module] | None
"""Path of a layer, what it reads, and the layer; None where none can stand for a call."""
Build = Callable[[Given, Any], nn.Module | None]
"""(arguments, weight) -> the layer, whose tensors are replaced; None where there is none."""


def layer_for(program: fx.GraphModule, node: fx.Node) -> Made:
    """Return the layer that can stand for an operator's call.

    Args:
        program: The program; it is not changed.
        node: One of its nodes.
    """
    make = _MAKERS.get(node.target) if node.op == "call_function" else None
    return make(program, node) if make is not None else None


def _arguments(node: fx.Node) -> Given:
    assert isinstance(node.target, torch._ops.OpOverload)
    schema = node.target._schema.arguments
    given = {a.name: a.default_value for a in schema if a.has_default_value()}
    names = (a.name for a in schema)
    return {**given, **dict(zip(names, node.args, strict=False)), **node.kwargs}


def _holder(
    program: fx.GraphModule, node: fx.Node, parts: Mapping[str, Any]
) -> tuple[str, nn.Module] | None:
    """Return the module that holds a call's tensors as a layer does, and nothing else, for such
    calls alone.

    Args:
        program: The program.
        node: The call.
        parts: Name of a tensor in a layer -> the call's argument.
    """
    nodes = {name: value for name, value in parts.items() if value is not None}
    owners = set()
    for name, value in nodes.items():
        if not isinstance(value, fx.Node) or value.op != "get_attr":
            return None
        owner, _, leaf = str(value.target).rpartition(".")
        if leaf != name:
            return None
        owners.add(owner)
    path = owners.pop() if len(owners) == 1 else ""
    if not path or any(_is_read_otherwise(value, node) for value in nodes.values()):
        return None
    holder = program.get_submodule(path)
    is_plain = type(holder) is nn.Module and not holder._modules
    return (path, holder) if is_plain or isinstance(holder, _KINDS) else None


def _is_read_otherwise(tensor: fx.Node, call: fx.Node) -> bool:
    """True if anything but calls of the same layer reads a tensor."""
    form = _form(call)
    return any(
        user.target is not call.target or _form(user) != form for user in tensor.users
    )


def _form(node: fx.Node) -> tuple[tuple[str, str], ...]:
    """Return what two calls of one layer have in common: everything but what they read."""
    given = sorted(_arguments(node).items())
    return tuple(
        (key, str(value)) for key, value in given if key not in ("input", "indices")
    )


def _layer(
    parts: Callable[[Given], Mapping[str, Any]], build: Build, source: str = "input"
) -> Callable[[fx.GraphModule, fx.Node], Made]:
    """Return a maker of one kind of layer.

    Args:
        parts: Arguments -> the layer's tensors by name.
        build: Makes the layer.
        source: The argument that the layer reads.
    """

    def make(program: fx.GraphModule, node: fx.Node) -> Made:
        given = _arguments(node)
        wanted, read = parts(given), given[source]
        found = _holder(program, node, wanted)
        if found is None or not isinstance(read, fx.Node):
            return None
        path, holder = found
        if isinstance(holder, _KINDS):
            return path, read, holder
        # On the meta device: its own tensors would be made for nothing.
        with torch.device("meta"):
            module = build(given, holder._parameters.get(_WEIGHT))
        if module is None:
            return None
        _take_over(module, holder, wanted)
        return path, read, module.eval()

    return make


def _take_over(module: nn.Module, holder: nn.Module, parts: Mapping[str, Any]) -> None:
    """Give a layer the tensors of the module that held them."""
    for name, value in parts.items():
        table = module._buffers if name in module._buffers else module._parameters
        table[name] = None if value is None else getattr(holder, name)
    if _BATCHES in module._buffers:
        module._buffers[_BATCHES] = holder._buffers.get(_BATCHES, torch.tensor(0))


def _affine(given: Given) -> dict[str, Any]:
    return {_WEIGHT: given[_WEIGHT], _BIAS: given[_BIAS]}


def _table(given: Given) -> dict[str, Any]:
    return {_WEIGHT: given[_WEIGHT]}


def _normed(given: Given) -> dict[str, Any]:
    statistics = {name: given[name] for name in ("running_mean", "running_var")}
    return {**_affine(given), **statistics}


def _linear(given: Given, weight: Any) -> nn.Module:
    return nn.Linear(weight.shape[1], weight.shape[0], given[_BIAS] is not None)


def _form_of(given: Given, names: tuple[str, ...], axes: int) -> dict[str, Any]:
    """Return sizes as a layer has them; a list of one stands for all axes."""
    form = {}
    for name in names:
        value = given[name]
        if isinstance(value, list | tuple):
            value = tuple(value) * (axes if len(value) == 1 else 1)
        form[name] = value
    return form


def _convolution(kind: Any) -> Build:
    def build(given: Given, weight: Any) -> nn.Module:
        form = _form_of(
            given, ("stride", "padding", "dilation", "groups"), weight.ndim - 2
        )
        inputs, outputs = weight.shape[1] * given["groups"], weight.shape[0]
        has_bias = given[_BIAS] is not None
        made: nn.Module = kind(
            inputs, outputs, tuple(weight.shape[2:]), bias=has_bias, **form
        )
        return made

    return build


def _transposed(kind: Any) -> Build:
    names = ("stride", "padding", "output_padding", "dilation", "groups")

    def build(given: Given, weight: Any) -> nn.Module:
        form = _form_of(given, names, weight.ndim - 2)
        inputs, outputs = weight.shape[0], weight.shape[1] * given["groups"]
        has_bias = given[_BIAS] is not None
        made: nn.Module = kind(
            inputs, outputs, tuple(weight.shape[2:]), bias=has_bias, **form
        )
        return made

    return build


def _embedding(_: Given, weight: Any) -> nn.Module:
    return nn.Embedding(weight.shape[0], weight.shape[1])


def _batch_norm(given: Given, weight: Any) -> nn.Module | None:
    if given["training"] or weight is None or given["running_mean"] is None:
        return None
    # The axes are the input's; the layer checks them, and folding looks at the class.
    shape = getattr(given["input"].meta.get("val"), "shape", ())
    kind = _BATCH_NORMS.get(len(shape))
    return kind(weight.shape[0], given["eps"]) if kind is not None else None


def _layer_norm(given: Given, weight: Any) -> nn.Module | None:
    if weight is None:
        return None
    shape = tuple(given["normalized_shape"])
    return nn.LayerNorm(shape, given["eps"], bias=given[_BIAS] is not None)


_MAKERS: Mapping[Any, Callable[[fx.GraphModule, fx.Node], Made]] = {
    _ATEN.linear.default: _layer(_affine, _linear),
    _ATEN.conv1d.default: _layer(_affine, _convolution(nn.Conv1d)),
    _ATEN.conv2d.default: _layer(_affine, _convolution(nn.Conv2d)),
    _ATEN.conv3d.default: _layer(_affine, _convolution(nn.Conv3d)),
    _ATEN.conv1d.padding: _layer(_affine, _convolution(nn.Conv1d)),
    _ATEN.conv2d.padding: _layer(_affine, _convolution(nn.Conv2d)),
    _ATEN.conv3d.padding: _layer(_affine, _convolution(nn.Conv3d)),
    _ATEN.conv_transpose1d.default: _layer(_affine, _transposed(nn.ConvTranspose1d)),
    _ATEN.conv_transpose2d.input: _layer(_affine, _transposed(nn.ConvTranspose2d)),
    _ATEN.conv_transpose3d.input: _layer(_affine, _transposed(nn.ConvTranspose3d)),
    _ATEN.embedding.default: _layer(_table, _embedding, "indices"),
    _ATEN.batch_norm.default: _layer(_normed, _batch_norm),
    _ATEN.layer_norm.default: _layer(_affine, _layer_norm),
}
"""Operator -> what makes its layer."""
