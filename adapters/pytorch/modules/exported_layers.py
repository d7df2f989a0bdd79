"""Layers in the place of the operators that a program of torch.export calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node

_ATEN = torch.ops.aten
_WEIGHT, _BIAS = "weight", "bias"
_BATCHES = "num_batches_tracked"
_READ = ("input", "indices")
"""Arguments that are the value a layer reads."""
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
Made = tuple[str, Node, nn.Module] | None
"""Path of a layer, what it reads, and the layer; None where none can stand for a call."""
Maker = Callable[[GraphModule, Node], Made]
"""(program, call) -> the layer in the call's place."""
Build = Callable[[Given, Any], nn.Module | None]
"""(arguments, weight) -> the layer, whose tensors are replaced; None where there is none."""


def layer_for(program: GraphModule, node: Node) -> Made:
    """Return the layer that can stand for an operator's call.

    Args:
        program: The program; it is not changed.
        node: One of its nodes.
    """
    if node.op != "call_function" or node.target not in _MAKERS:
        return None
    make = _MAKERS[node.target]
    return make(program, node)


def _arguments(node: Node) -> Given:
    assert isinstance(node.target, torch._ops.OpOverload)
    schema = node.target._schema.arguments
    given: dict[str, Any] = {}
    for argument in schema:
        if argument.has_default_value():
            given[argument.name] = argument.default_value
    names = [argument.name for argument in schema]
    # Trailing arguments may be left out, or be given by name.
    given.update(zip(names, node.args, strict=False))
    given.update(node.kwargs)
    return given


def _holder(
    program: GraphModule, node: Node, parts: Mapping[str, Any]
) -> tuple[str, nn.Module] | None:
    """Return the module that holds a call's tensors as a layer does, and nothing else, for such
    calls alone.

    Args:
        program: The program.
        node: The call.
        parts: Name of a tensor in a layer -> the call's argument.
    """
    owners = set()
    for name, value in parts.items():
        if value is None:
            continue
        if not isinstance(value, Node) or value.op != "get_attr":
            return None
        owner, _, leaf = str(value.target).rpartition(".")
        if leaf != name or _is_read_otherwise(value, node):
            return None
        owners.add(owner)
    if len(owners) != 1:
        return None
    path = owners.pop()
    # Tensors of the program itself have no holder of their own.
    if not path:
        return None
    holder = program.get_submodule(path)
    is_plain = type(holder) is nn.Module and not holder._modules
    if is_plain or isinstance(holder, _KINDS):
        return path, holder
    return None


def _is_read_otherwise(tensor: Node, call: Node) -> bool:
    """True if anything but calls of the same layer reads a tensor."""
    form = _form(call)
    alike = [
        user.target is call.target and _form(user) == form for user in tensor.users
    ]
    return not all(alike)


def _form(node: Node) -> tuple[tuple[str, str], ...]:
    """Return what two calls of one layer have in common: everything but what they read."""
    given = sorted(_arguments(node).items())
    return tuple((key, str(value)) for key, value in given if key not in _READ)


def _layer(
    parts: Callable[[Given], Mapping[str, Any]], build: Build, source: str = "input"
) -> Maker:
    """Return a maker of one kind of layer.

    Args:
        parts: Arguments -> the layer's tensors by name.
        build: Makes the layer.
        source: The argument that the layer reads.
    """

    def make(program: GraphModule, node: Node) -> Made:
        given = _arguments(node)
        wanted = parts(given)
        read = given[source]
        found = _holder(program, node, wanted)
        if found is None or not isinstance(read, Node):
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
        tensor = None if value is None else getattr(holder, name)
        if name in module._buffers:
            module._buffers[name] = tensor
        else:
            module._parameters[name] = tensor
    if _BATCHES in module._buffers:
        module._buffers[_BATCHES] = holder._buffers.get(_BATCHES, torch.tensor(0))


def _affine(given: Given) -> dict[str, Any]:
    return {name: given[name] for name in (_WEIGHT, _BIAS)}


def _table(given: Given) -> dict[str, Any]:
    return {_WEIGHT: given[_WEIGHT]}


def _normed(given: Given) -> dict[str, Any]:
    parts = _affine(given)
    for name in ("running_mean", "running_var"):
        parts[name] = given[name]
    return parts


def _linear(given: Given, weight: Any) -> nn.Module:
    outputs, inputs = weight.shape
    has_bias = given[_BIAS] is not None
    return nn.Linear(inputs, outputs, has_bias)


def _form_of(given: Given, names: tuple[str, ...], axes: int) -> dict[str, Any]:
    """Return sizes as a layer has them; a list of one stands for all axes."""
    form = {}
    for name in names:
        value = given[name]
        if isinstance(value, list | tuple):
            value = tuple(value)
            if len(value) == 1:
                value *= axes
        form[name] = value
    return form


def _convolution(kind: Any) -> Build:
    names = ("stride", "padding", "dilation", "groups")

    def build(given: Given, weight: Any) -> nn.Module:
        outputs, inputs_of_group, *kernel = weight.shape
        inputs = inputs_of_group * given["groups"]
        form = _form_of(given, names, len(kernel))
        has_bias = given[_BIAS] is not None
        made: nn.Module = kind(inputs, outputs, tuple(kernel), bias=has_bias, **form)
        return made

    return build


def _transposed(kind: Any) -> Build:
    names = ("stride", "padding", "output_padding", "dilation", "groups")

    def build(given: Given, weight: Any) -> nn.Module:
        inputs, outputs_of_group, *kernel = weight.shape
        outputs = outputs_of_group * given["groups"]
        form = _form_of(given, names, len(kernel))
        has_bias = given[_BIAS] is not None
        made: nn.Module = kind(inputs, outputs, tuple(kernel), bias=has_bias, **form)
        return made

    return build


def _embedding(_: Given, weight: Any) -> nn.Module:
    rows, width = weight.shape
    return nn.Embedding(rows, width)


def _batch_norm(given: Given, weight: Any) -> nn.Module | None:
    if given["training"] or weight is None or given["running_mean"] is None:
        return None
    # The axes are the input's; the layer checks them, and folding looks at the class.
    example = given["input"].meta.get("val")
    shape = getattr(example, "shape", ())
    kind = _BATCH_NORMS.get(len(shape))
    if kind is None:
        return None
    channels = weight.shape[0]
    return kind(channels, given["eps"])


def _layer_norm(given: Given, weight: Any) -> nn.Module | None:
    if weight is None:
        return None
    shape = tuple(given["normalized_shape"])
    has_bias = given[_BIAS] is not None
    return nn.LayerNorm(shape, given["eps"], bias=has_bias)


_MAKERS: Mapping[Any, Maker] = {
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
