"""The layers of a module tree that may be quantized, as ops."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod

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
        fused: What else is fused, in order: ``add``, ``relu``; one activation function for a linear layer.
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

    A module that is registered or called twice is one op. Children of modules that read their weights and may never call
    them are left out.
    """
    first = aliases(root)
    found: dict[str, Op] = {}
    hidden = [f"{path}." if path else "" for path in bypassed(root)]
    for path, module in root.named_modules():
        kind = kind_of(module)
        if kind and not any(path.startswith(h) for h in hidden):
            name = path or type(module).__name__.lower()
            found[path] = _op(name, path, module, kind, first)
    for path in (p for _, paths in expert_groups(root) for p in paths):
        found[path] = replace(found[path], attributes={**found[path].attributes, "routed": True})
    return _shared(found)


def _op(name: str, path: str, module: nn.Module, kind: str, first: Mapping[str, str]) -> Op:
    prefix = f"{path}." if path else ""
    names = weight_names(module) if kind in RECURRENT_KINDS.values() else ("weight",)
    made_of = parameter_of(path, module)
    weights = [
        replace(
            _weight(module, leaf, first.get(f"{prefix}{leaf}", f"{prefix}{leaf}")), made_of=made_of
        )
        for leaf in names
    ]
    attributes: dict[str, Attribute] = {}
    reason = ""
    if kind == "conv":
        assert isinstance(module, CONVS)
        attributes = {
            "strides": tuple(module.stride),
            "pads": conv_pads(module),
            "dilations": tuple(module.dilation),
            "groups": module.groups,
        }
        if module.padding_mode != "zeros":
            reason = f"padding mode {module.padding_mode!r} has no integer kernel"
    elif isinstance(module, TRANSPOSED):
        pads, more = tuple(int(p) for p in module.padding), tuple(module.output_padding)
        attributes = {
            "strides": tuple(module.stride),
            "pads": pads * 2,
            "dilations": tuple(module.dilation),
            "groups": module.groups,
        }
        attributes["output_padding"] = more
    elif isinstance(module, nn.RNNBase):
        attributes = {
            "layers": module.num_layers,
            "bidirectional": module.bidirectional,
            "batch_first": module.batch_first,
        }
        if module.proj_size:
            attributes["proj_size"] = module.proj_size
    elif kind == "embedding" and getattr(module, "max_norm", None) is not None:
        reason = "max_norm changes the table at every call"
    if "forward" in module.__dict__:
        reason = (
            "its forward was replaced on the object: what it computes is not what its class does"
        )
    if not reason and not getattr(module, names[0]).is_floating_point():
        reason = f"its weight is {weights[0].dtype}, not a floating-point type"
    if not reason and not all(w.size for w in weights):
        reason = "its weight has no elements"
    bias = f"{prefix}bias" if isinstance(getattr(module, "bias", None), torch.Tensor) else None
    return Op(
        name=name,
        type=kind,
        inputs=(f"{name}:in",),
        outputs=(f"{name}:out",),
        weight=weights[0],
        bias=bias and first.get(bias, bias),
        attributes=attributes,
        out_of_reach=reason,
        further=tuple(weights[1:]),
    )


def _weight(module: nn.Module, leaf: str, name: str) -> Weight:
    tensor = getattr(module, leaf)
    axis = 1 if is_transposed_linear(module) or isinstance(module, TRANSPOSED) else 0
    return Weight(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), axis)


def conv_pads(module: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> tuple[int, ...]:
    """Return the zeros before each spatial axis, then those after."""
    n = len(module.kernel_size)
    # nn.Conv keeps what "same" and "valid" amount to as (last axis before, after, ..., first axis before, after).
    pairs = module._reversed_padding_repeated_twice
    return tuple(pairs[2 * (n - 1 - i)] for i in range(n)) + tuple(
        pairs[2 * (n - 1 - i) + 1] for i in range(n)
    )


def _shared(ops: dict[str, Op]) -> dict[str, Op]:
    users: dict[str, list[str]] = {}
    for op in ops.values():
        if op.weight:
            users.setdefault(op.weight.name, []).append(op.name)
    return {
        path: replace(
            op,
            weight=replace(
                op.weight, shared_with=tuple(n for n in users[op.weight.name] if n != op.name)
            ),
        )
        if op.weight and len(users[op.weight.name]) > 1
        else op
        for path, op in ops.items()
    }


def with_shapes(op: Op, output_shape: tuple[int, ...] | None) -> Op:
    """Return the op with its multiply-accumulates for one sample, from the shape of its output."""
    if (
        output_shape is None
        or op.weight is None
        or op.type == "embedding"
        or not output_shape
        or not op.weight.size
    ):
        return op
    if op.type in RECURRENT_KINDS.values():
        steps = (
            output_shape[1 if op.attributes["batch_first"] else 0]
            if len(output_shape) == 3
            else output_shape[0]
        )
        return replace(op, macs=steps * op.parameters)
    if op.type == "conv_transpose":
        strides = op.attributes["strides"]
        assert isinstance(strides, tuple)
        return replace(op, macs=op.weight.size * prod(output_shape[2:]) // prod(strides))
    per_value = prod(op.weight.shape) // op.weight.shape[op.weight.channel_axis]
    return replace(
        op,
        macs=per_value * prod(output_shape[1:])
        if len(output_shape) > 1
        else per_value * output_shape[0],
    )
