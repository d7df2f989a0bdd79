"""Programs of torch.export as modules again: their graphs call operators where the model called layers."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn

_ATEN = torch.ops.aten
_WEIGHT, _BIAS = "weight", "bias"

_FUNCTIONS: Mapping[Any, Any] = {
    _ATEN.linear.default: nn.functional.linear,
    _ATEN.conv1d.default: torch.conv1d,
    _ATEN.conv2d.default: torch.conv2d,
    _ATEN.conv3d.default: torch.conv3d,
    _ATEN.conv1d.padding: torch.conv1d,
    _ATEN.conv2d.padding: torch.conv2d,
    _ATEN.conv3d.padding: torch.conv3d,
    _ATEN.relu.default: torch.relu,
    _ATEN.relu_.default: torch.relu,
    _ATEN.gelu.default: nn.functional.gelu,
    _ATEN.silu.default: nn.functional.silu,
    _ATEN.silu_.default: nn.functional.silu,
    _ATEN.add.Tensor: operator.add,
    _ATEN.matmul.default: torch.matmul,
    _ATEN.bmm.default: torch.bmm,
    _ATEN.scaled_dot_product_attention.default: nn.functional.scaled_dot_product_attention,
}
"""Operator -> the function of the same arguments that layers and fusions are known by."""
_IN_PLACE = frozenset({_ATEN.relu_.default, _ATEN.silu_.default})


def is_exported(root: nn.Module) -> bool:
    """True for a graph that calls ATen operators, as torch.export makes it."""
    return isinstance(root, fx.GraphModule) and any(
        isinstance(n.target, torch._ops.OpOverload) for n in root.graph.nodes
    )


def recovered(root: fx.GraphModule) -> fx.GraphModule:
    """Return the same program with layers, where operators read parameters that a layer of the exported model held.

    Args:
        root: A skeleton; it is not changed, and the parameters are shared.
    """
    program = fx.GraphModule(root, copy.deepcopy(root.graph))
    for node in list(program.graph.nodes):
        layer = _LAYERS.get(node.target) if node.op == "call_function" else None
        made = layer(program, node) if layer is not None else None
        if made is not None:
            path, source, module = made
            _put(program, path, module)
            with program.graph.inserting_before(node):
                call = program.graph.call_module(path, (source,))
            call.meta.update(node.meta)
            node.replace_all_uses_with(call)
            program.graph.erase_node(node)
    for node in program.graph.nodes:
        if node.op == "call_function" and node.target in _FUNCTIONS and _takes_the_same(node):
            node.target = _FUNCTIONS[node.target]
    for node in reversed(list(program.graph.nodes)):
        if node.op == "get_attr" and not node.users:
            program.graph.erase_node(node)
    for table in ("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"):
        # They check what the program was exported for: sizes, for one.
        getattr(program, table).update(getattr(root, table))
    for name in ("_in_spec", "validate_inputs", "range_constraints", "module_call_graph"):
        if name in root.__dict__:
            program.__dict__[name] = root.__dict__[name]
    program.recompile()
    return program.eval()


Made = tuple[str, fx.Node, nn.Module] | None
"""Path of a layer, what it reads, and the layer; None where none can stand for a call."""


def _put(program: fx.GraphModule, path: str, module: nn.Module) -> None:
    owner, _, leaf = path.rpartition(".")
    program.get_submodule(owner)._modules[leaf] = module


def _takes_the_same(node: fx.Node) -> bool:
    if node.target in _IN_PLACE:
        # Whoever else reads what is written to must go on seeing it.
        return all(
            len(source.users) == 1 and source.op != "placeholder" for source in node.all_input_nodes
        )
    # a + alpha * b has no operator of Python's.
    return node.target is not _ATEN.add.Tensor or not node.kwargs


def _arguments(node: fx.Node) -> dict[str, Any]:
    """Return an operator's arguments by name, defaults included."""
    assert isinstance(node.target, torch._ops.OpOverload)
    schema = node.target._schema.arguments
    given = {a.name: a.default_value for a in schema if a.has_default_value()}
    return {**given, **dict(zip((a.name for a in schema), node.args, strict=False)), **node.kwargs}


def _holder(
    program: fx.GraphModule, node: fx.Node, parts: Mapping[str, Any]
) -> tuple[str, nn.Module] | None:
    """Return the module that holds a call's tensors under the names that a layer has them by, and nothing else, for these calls alone.

    Args:
        program: The program.
        node: The call.
        parts: Name of a tensor in a layer -> the call's argument.
    """
    nodes = {name: value for name, value in parts.items() if value is not None}
    if not all(isinstance(value, fx.Node) and value.op == "get_attr" for value in nodes.values()):
        return None
    paths = {name: str(value.target).rpartition(".") for name, value in nodes.items()}
    owners = {owner for owner, _, _ in paths.values()}
    if (
        len(owners) != 1
        or any(leaf != name for name, (_, _, leaf) in paths.items())
        or owners == {""}
    ):
        return None
    path = owners.pop()
    holder = program.get_submodule(path)
    for value in nodes.values():
        for user in value.users:
            if user.target is not node.target or _form(user) != _form(node):
                return None
    plain = type(holder) is nn.Module and not holder._modules
    return (path, holder) if plain or isinstance(holder, _KINDS) else None


def _form(node: fx.Node) -> tuple[tuple[str, str], ...]:
    """Return what two calls of one layer have in common: everything but what they read."""
    return tuple(
        (k, str(v)) for k, v in sorted(_arguments(node).items()) if k not in ("input", "indices")
    )


def _layer(
    parts: Callable[[dict[str, Any]], Mapping[str, Any]],
    build: Callable[[dict[str, Any], Any], nn.Module | None],
    source: str = "input",
) -> Callable[[fx.GraphModule, fx.Node], Made]:
    """Return a maker of one kind of layer.

    Args:
        parts: Arguments -> the layer's tensors by name.
        build: (arguments, weight) -> the layer, whose tensors are replaced.
        source: The argument that the layer reads.
    """

    def make(program: fx.GraphModule, node: fx.Node) -> Made:
        given = _arguments(node)
        wanted = parts(given)
        found = _holder(program, node, wanted)
        read = given[source]
        if found is None or not isinstance(read, fx.Node):
            return None
        path, holder = found
        if isinstance(holder, _KINDS):
            return path, read, holder
        with torch.device("meta"):
            module = build(given, holder._parameters.get(_WEIGHT))
        if module is None:
            return None
        for name, value in wanted.items():
            table = module._buffers if name in module._buffers else module._parameters
            table[name] = None if value is None else getattr(holder, name)
        if "num_batches_tracked" in module._buffers:
            module._buffers["num_batches_tracked"] = holder._buffers.get(
                "num_batches_tracked", torch.tensor(0)
            )
        return path, read, module.eval()

    return make


def _affine(given: dict[str, Any]) -> dict[str, Any]:
    return {_WEIGHT: given[_WEIGHT], _BIAS: given[_BIAS]}


def _normed(given: dict[str, Any]) -> dict[str, Any]:
    return {
        **_affine(given),
        "running_mean": given["running_mean"],
        "running_var": given["running_var"],
    }


def _linear(given: dict[str, Any], weight: Any) -> nn.Module:
    return nn.Linear(weight.shape[1], weight.shape[0], given[_BIAS] is not None)


def _form_of(given: dict[str, Any], names: tuple[str, ...], axes: int) -> dict[str, Any]:
    """Return sizes as a layer has them; a list of one stands for all axes."""

    def sizes(value: Any) -> Any:
        return (
            tuple(value) * (axes if len(value) == 1 else 1)
            if isinstance(value, list | tuple)
            else value
        )

    return {name: sizes(given[name]) for name in names}


def _convolution(
    kind: type[nn.Conv1d | nn.Conv2d | nn.Conv3d],
) -> Callable[[dict[str, Any], Any], nn.Module]:
    def build(given: dict[str, Any], weight: Any) -> nn.Module:
        form = _form_of(given, ("stride", "padding", "dilation", "groups"), weight.ndim - 2)
        channels = weight.shape[1] * given["groups"]
        return kind(
            channels,
            weight.shape[0],
            tuple(weight.shape[2:]),
            bias=given[_BIAS] is not None,
            **form,
        )

    return build


def _transposed(kind: Any) -> Callable[[dict[str, Any], Any], nn.Module]:
    def build(given: dict[str, Any], weight: Any) -> nn.Module:
        form = _form_of(
            given, ("stride", "padding", "output_padding", "dilation", "groups"), weight.ndim - 2
        )
        channels = weight.shape[1] * given["groups"]
        made: nn.Module = kind(
            weight.shape[0],
            channels,
            tuple(weight.shape[2:]),
            bias=given[_BIAS] is not None,
            **form,
        )
        return made

    return build


def _embedding(given: dict[str, Any], weight: Any) -> nn.Module:
    return nn.Embedding(weight.shape[0], weight.shape[1])


def _batch_norm(given: dict[str, Any], weight: Any) -> nn.Module | None:
    if given["training"] or weight is None or given["running_mean"] is None:
        return None
    # The axes are the input's; the layer checks them, and folding looks at the class.
    shape = getattr(given["input"].meta.get("val"), "shape", ())
    kinds = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
    return kinds[len(shape)](weight.shape[0], given["eps"]) if len(shape) in kinds else None


def _layer_norm(given: dict[str, Any], weight: Any) -> nn.Module | None:
    if weight is None:
        return None
    return nn.LayerNorm(
        tuple(given["normalized_shape"]), given["eps"], bias=given[_BIAS] is not None
    )


_LAYERS: Mapping[Any, Callable[[fx.GraphModule, fx.Node], Made]] = {
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
    _ATEN.embedding.default: _layer(lambda given: {_WEIGHT: given[_WEIGHT]}, _embedding, "indices"),
    _ATEN.batch_norm.default: _layer(_normed, _batch_norm),
    _ATEN.layer_norm.default: _layer(_affine, _layer_norm),
}
_KINDS = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Embedding,
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm,
)  # fmt: skip
"""Layers that are put in: a second call of one finds it in its holder's place."""
