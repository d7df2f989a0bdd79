"""Links over which channels may be changed without changing the model's function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import nn

from octavo.adapters.pytorch.modules.shared_copy import set_tensor, skeleton
from octavo.core.numerics.channels import (
    EVERY,
    ChannelMap,
    chained,
    channel_maps,
    is_online,
    norm_steps,
)
from octavo.core.numerics.channels import Factors as Given
from octavo.core.values.graph import Group

from .layers import Layer

Tensor = torch.Tensor
Own = tuple[ChannelMap, ...]
Factors = Mapping[str, Own]
"""Op name -> maps of a linear layer's input, in order, as few as can be."""


@dataclass(frozen=True)
class Link:
    """A rescale group, and which tensors it divides and multiplies.

    Attributes:
        group: As the core sees it.
        divided: Names of tensors whose first axis is divided by the factors.
        offset: The producer's gain is 1 + weight, not weight.
        members: The consumers.
        kind: What the producer is.
    """

    group: Group
    divided: tuple[str, ...]
    members: tuple[Layer, ...]
    kind: Literal["norm", "conv", "input"]
    offset: bool = False

    @classmethod
    def of_norm(cls, path: str, norm: nn.Module, members: Sequence[Layer], value: str) -> Link:
        """Link a normalisation to the layers that read it."""
        weight = norm.weight
        assert isinstance(weight, Tensor)
        names = tuple(
            f"{path}.{n}" for n in ("weight", "bias") if getattr(norm, n, None) is not None
        )
        offset = gain_of(norm) == "offset"
        gain, shift = ("", "") if offset else (names[0], names[1] if len(names) > 1 else "")
        label, readers = f"{path} -> {members[0].op.name}", tuple(m.op.name for m in members)
        online = norm_steps(has_shift=len(names) > 1)
        group = Group(
            label,
            "rescale",
            readers,
            path,
            weight.numel(),
            value,
            gain=gain,
            shift=shift,
            takes=EVERY,
            online=online,
        )
        return cls(group, names, tuple(members), "norm", offset)

    @classmethod
    def of_conv(cls, producer: Layer, members: Sequence[Layer], value: str) -> Link:
        """Link a convolution (its batch norm, if it has one) to the convolutions that read it."""
        assert producer.op.weight is not None
        path = producer.norm or producer.path
        names = (f"{path}.weight", *((f"{path}.bias",) if producer.op.bias else ()))
        channels = producer.op.weight.shape[0]
        group = Group(
            f"{producer.op.name} -> {members[0].op.name}",
            "rescale",
            tuple(m.op.name for m in members),
            producer.op.name,
            channels,
            value,
        )
        return cls(group, names, tuple(members), "conv")


def input_link(members: Sequence[Layer], value: str) -> Link:
    """Link a value to the linear layers that read it: they multiply it as they quantize it, which costs nothing there.

    Shifts and rotations are steps of their own before the products.
    """
    weight = members[0].op.weight
    assert weight is not None
    label, readers = f"{value} -> {members[0].op.name}", tuple(m.op.name for m in members)
    group = Group(
        label,
        "rescale",
        readers,
        "",
        weight.shape[1 - weight.channel_axis],
        value,
        takes=EVERY,
        online=EVERY,
    )
    return Link(group, (), tuple(members), "input")


def is_norm(module: nn.Module) -> bool:
    """True for a normalisation over the last axis with a gain for each channel, established by running it."""
    return gain_of(module) != ""


def gain_of(module: nn.Module) -> Literal["", "weight", "offset"]:
    """Return how a normalisation's gain depends on its weight: ``weight``, ``offset`` (1 + weight), or empty if it is none.

    Known by its behaviour and not by its class, because every language model brings a class of its own.
    """
    if not type(module).__name__.endswith("Norm") or any(True for _ in module.children()):
        return ""
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    own = {n for n, _ in module.named_parameters(recurse=False)}
    if (
        not isinstance(weight, nn.Parameter)
        or weight.ndim != 1
        or own - {"weight", "bias"}
        or not weight.is_floating_point()
    ):
        return ""
    if isinstance(
        module,
        nn.modules.batchnorm._BatchNorm | nn.GroupNorm | nn.modules.instancenorm._InstanceNorm,
    ):
        return ""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, weight.numel(), generator=generator).to(weight)
    factors = (torch.rand(weight.numel(), generator=generator) + 0.5).to(weight)

    def divided(gain: Tensor) -> Tensor:
        twin = skeleton(module)
        set_tensor(twin, "weight", gain)
        if bias is not None:
            set_tensor(twin, "bias", bias.detach() / factors)
        result: Tensor = twin(x)
        return result

    with torch.no_grad():
        try:
            expected = module(x) / factors
            if not isinstance(expected, Tensor) or expected.shape != x.shape:
                return ""
            near = partial(torch.allclose, other=expected, rtol=1e-2, atol=1e-3)
            if near(divided(weight.detach() / factors)):
                return "weight"
            return "offset" if near(divided((1 + weight.detach()) / factors - 1)) else ""
        except (RuntimeError, TypeError, ValueError):
            return ""


def rescaled(
    root: nn.Module, links: Mapping[str, Link], factors: Mapping[str, Given], own: Factors
) -> tuple[nn.Module, Factors]:
    """Return a skeleton with other channels, and the maps that stay with its layers.

    Every tensor that no link touches is shared.

    Raises:
        SchemeError: If a group is unknown or cannot take its factors.
    """
    twin = skeleton(root)
    kept = dict(own)
    for group, given in channel_maps((link.group for link in links.values()), factors):
        link = links[group.name]
        first = twin.get_submodule(link.members[0].path).weight
        assert isinstance(first, Tensor)
        scale, shift = (
            None if a is None else torch.as_tensor(a).to(first.device)
            for a in (given.scale, given.shift)
        )
        change = ChannelMap(scale, shift, given.rotation)
        if is_online(group, change, already=any(m.op.name in kept for m in link.members)):
            for member in link.members:
                kept[member.op.name] = chained((*kept.get(member.op.name, ()), change))
        else:
            for name in link.divided:
                _write(twin, name, change, link.offset and name.endswith(".weight"))
        for module in {
            id(m): m for m in (twin.get_submodule(member.path) for member in link.members)
        }.values():
            _read(
                twin,
                module,
                change,
                next(m for m in link.members if twin.get_submodule(m.path) is module),
            )
    return twin, kept


def _write(root: nn.Module, name: str, change: ChannelMap, offset: bool) -> None:
    """Let a norm or convolution write the changed value; its gain or weight is divided, its shift or bias is moved too."""
    path, _, leaf = name.rpartition(".")
    old = getattr(root.get_submodule(path), leaf).detach()
    change = change if leaf == "bias" else ChannelMap(change.scale)
    new = change.apply(1 + old.float()) - 1 if offset else change.apply(old, axis=0)
    set_tensor(root, name, new.to(old.dtype))


def _read(root: nn.Module, module: nn.Module, change: ChannelMap, member: Layer) -> None:
    """Let a member's weight read the changed value; its bias takes in a shift, and is made where there is none."""
    weight, bias = module.weight, getattr(module, "bias", None)
    assert isinstance(weight, Tensor)
    old = weight.detach()
    if member.op.type == "linear":
        transposed = member.op.weight is not None and member.op.weight.channel_axis == 1
        rows = old.t() if transposed else old
        matrix = change.reader(rows)
        new = (matrix.t() if transposed else matrix).contiguous()
        if change.shift is not None:
            moved = change.reader_bias(rows, None if bias is None else bias.detach())
            assert moved is not None
            # This module's alone: another that shared the bias reads something else.
            module._parameters["bias"] = nn.Parameter(moved.to(old.dtype), requires_grad=False)
    else:
        groups = module.groups
        assert isinstance(groups, int)
        new = change.grouped_reader(old, groups)
    set_tensor(root, f"{member.path}.weight" if member.path else "weight", new.to(old.dtype))
