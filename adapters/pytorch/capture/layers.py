"""The layers of a module tree that may be quantized, as ops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import nn

from octavo.adapters.pytorch.capture.standins.attention import bypassed
from octavo.adapters.pytorch.capture.standins.experts import expert_groups
from octavo.adapters.pytorch.capture.standins.sources import parameter_of
from octavo.adapters.pytorch.modules.kinds import (
    CONVS,
    RECURRENT_KINDS,
    TRANSPOSED,
    is_transposed_linear,
    kind_of,
    weight_names,
)
from octavo.adapters.pytorch.modules.shared_copy import aliases
from octavo.core.values.graph import Attribute, Op, Weight


@dataclass(frozen=True)
class Layer:
    """One layer: the op, and where its parts are.

    Attributes:
        op: As the core sees it.
        path: Path of the module.
        norm: Path of a batch norm that is folded into it, or empty.
        fused: What else is fused, in order: ``add``, ``relu``; for a linear layer one activation
            function.
        act: Path of the module of that function, where it has one.
        functional: It stands for a functional call: the graph calls it, the module tree does not.
    """

    op: Op
    path: str
    norm: str = ""
    fused: tuple[str, ...] = ()
    act: str = ""
    functional: bool = False

    @property
    def is_tied(self) -> bool:
        """True if another op reads the same weight."""
        return self.op.weight is not None and bool(self.op.weight.shared_with)

    @property
    def end(self) -> str:
        """Path of the module that puts the op's result out."""
        return self.act or self.norm or self.path


def find_layers(root: nn.Module) -> dict[str, Op]:
    """Return path -> op of every layer below ``root``; values are named after the paths.

    A module that is registered or called twice is one op. Children of modules that read their
    weights and may never call them are left out.
    """
    first = aliases(root)
    found: dict[str, Op] = {}
    hidden = tuple(f"{path}." if path else "" for path in bypassed(root))
    for path, module in root.named_modules():
        kind = kind_of(module)
        if kind and not path.startswith(hidden):
            found[path] = _op(path, module, kind, first)
    for _, paths in expert_groups(root):
        for path in paths:
            op = found[path]
            attributes = {**op.attributes, "routed": True}
            found[path] = replace(op, attributes=attributes)
    return _shared(found)


def _op(path: str, module: nn.Module, kind: str, first: Mapping[str, str]) -> Op:
    """Return one layer's op.

    Args:
        path: Of the module.
        module: The layer.
        kind: Its neutral op type.
        first: Further name of a tied tensor -> its first name.
    """
    name = path or type(module).__name__.lower()
    prefix = f"{path}." if path else ""
    leaves = weight_names(module) if kind in RECURRENT_KINDS.values() else ("weight",)
    made_of = parameter_of(path, module)
    weights = []
    for leaf in leaves:
        tensor = getattr(module, leaf)
        own = f"{prefix}{leaf}"
        weights.append(_weight(tensor, module, first.get(own, own), made_of))
    bias = None
    if isinstance(getattr(module, "bias", None), torch.Tensor):
        own = f"{prefix}bias"
        bias = first.get(own, own)
    return Op(
        name=name,
        type=kind,
        inputs=(f"{name}:in",),
        outputs=(f"{name}:out",),
        weight=weights[0],
        bias=bias,
        attributes=_attributes(module),
        out_of_reach=_why_out_of_reach(module, getattr(module, leaves[0]), weights),
        further=tuple(weights[1:]),
    )


def _weight(
    tensor: torch.Tensor, module: nn.Module, name: str, made_of: tuple[str, ...]
) -> Weight:
    # Transformers' Conv1D and transposed convolutions have their outputs on the second axis.
    is_turned = is_transposed_linear(module) or isinstance(module, TRANSPOSED)
    axis = 1 if is_turned else 0
    shape = tuple(tensor.shape)
    dtype = str(tensor.dtype).removeprefix("torch.")
    return Weight(name, shape, dtype, axis, made_of=made_of)


def _attributes(module: nn.Module) -> dict[str, Attribute]:
    """Return what a recipe or a report may ask of a layer."""
    if isinstance(module, nn.RNNBase):
        attributes: dict[str, Attribute] = {
            "layers": module.num_layers,
            "bidirectional": module.bidirectional,
            "batch_first": module.batch_first,
        }
        if module.proj_size:
            attributes["proj_size"] = module.proj_size
        return attributes
    if isinstance(module, TRANSPOSED):
        pads = tuple(int(p) for p in module.padding) * 2
        return {
            **_geometry(module, pads),
            "output_padding": tuple(module.output_padding),
        }
    if isinstance(module, CONVS):
        return _geometry(module, conv_pads(module))
    return {}


def _geometry(module: Any, pads: tuple[int, ...]) -> dict[str, Attribute]:
    return {
        "strides": tuple(module.stride),
        "pads": pads,
        "dilations": tuple(module.dilation),
        "groups": module.groups,
    }


def _why_out_of_reach(
    module: nn.Module, tensor: torch.Tensor, weights: Sequence[Weight]
) -> str:
    """Return why no scheme reaches a layer; empty if one may."""
    if "forward" in module.__dict__:
        return "its forward was replaced on the object: what it computes is not what its class does"
    is_convolution = isinstance(module, CONVS)
    if is_convolution and module.padding_mode != "zeros":
        return f"padding mode {module.padding_mode!r} has no integer kernel"
    is_table = isinstance(module, nn.Embedding | nn.EmbeddingBag)
    if is_table and module.max_norm is not None:
        return "max_norm changes the table at every call"
    if not tensor.is_floating_point():
        return f"its weight is {weights[0].dtype}, not a floating-point type"
    if not all(weight.size for weight in weights):
        return "its weight has no elements"
    return ""


def conv_pads(module: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> tuple[int, ...]:
    """Return the zeros before each spatial axis, then those after."""
    # nn.Conv keeps what "same" and "valid" amount to as (last axis before, after, ...,
    # first axis before, after).
    pairs = module._reversed_padding_repeated_twice
    before, after = pairs[0::2], pairs[1::2]
    return (*reversed(before), *reversed(after))


def _shared(ops: dict[str, Op]) -> dict[str, Op]:
    """Return the ops, each weight with the names of the other ops that read it."""
    users: dict[str, list[str]] = {}
    for op in ops.values():
        if op.weight:
            users.setdefault(op.weight.name, []).append(op.name)
    found = {}
    for path, op in ops.items():
        weight = op.weight
        if weight is not None and len(users[weight.name]) > 1:
            readers = users[weight.name]
            others = tuple(name for name in readers if name != op.name)
            shared = replace(weight, shared_with=others)
            op = replace(op, weight=shared)
        found[path] = op
    return found


def with_shapes(op: Op, output_shape: tuple[int, ...] | None) -> Op:
    """Return the op with its multiply-accumulates for one sample, from the shape of its output."""
    weight = op.weight
    if weight is None or not weight.size or op.type == "embedding" or not output_shape:
        return op
    return replace(op, macs=_macs(op, weight, output_shape))


def _macs(op: Op, weight: Weight, shape: tuple[int, ...]) -> int:
    if op.type in RECURRENT_KINDS.values():
        # Without a batch axis the output is (steps, hidden).
        steps_axis = 1 if len(shape) == 3 and op.attributes["batch_first"] else 0
        return shape[steps_axis] * op.parameters
    if op.type == "conv_transpose":
        strides = op.attributes["strides"]
        assert isinstance(strides, tuple)
        return weight.size * prod(shape[2:]) // prod(strides)
    channels = weight.shape[weight.channel_axis]
    per_value = prod(weight.shape) // channels
    has_batch = len(shape) > 1
    values = prod(shape[1:]) if has_batch else shape[0]
    return per_value * values
