"""A model over other channels: the same function, with channel maps in weights, norms and layers'
inputs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from octavo.adapters.pytorch.capture.layers import Layer
from octavo.adapters.pytorch.capture.links import InputMaps, Link
from octavo.adapters.pytorch.modules.shared_copy import set_tensor, skeleton
from octavo.core.numerics.channels import (
    ChannelMap,
    Factors,
    chained,
    channel_maps,
    is_online,
)

Tensor = torch.Tensor


def rescaled(
    root: nn.Module,
    links: Mapping[str, Link],
    factors: Mapping[str, Factors],
    own: InputMaps,
) -> tuple[nn.Module, InputMaps]:
    """Return a skeleton with other channels, and the maps that stay with its layers.

    Every tensor that no link touches is shared.

    Raises:
        SchemeError: If a group is unknown or cannot take its factors.
    """
    twin = skeleton(root)
    kept = dict(own)
    groups = [link.group for link in links.values()]
    for group, given in channel_maps(groups, factors):
        link = links[group.name]
        names = [layer.op.name for layer in link.members]
        first = twin.get_submodule(link.members[0].path)
        change = _beside(given, first)
        has_own = any(name in kept for name in names)
        if is_online(group, change, already=has_own):
            for name in names:
                before = kept.get(name, ())
                kept[name] = chained((*before, change))
        else:
            for name in link.divided:
                is_gain = name.endswith(".weight")
                _write(twin, name, change, offset=link.offset and is_gain)
        for module, member in _readers(twin, link):
            _read(twin, module, change, member)
    return twin, kept


def _beside(given: ChannelMap, module: nn.Module) -> ChannelMap:
    """Return a map whose vectors lie on the device of a module's weight."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    device = weight.device
    scale = given.scale
    if scale is not None:
        scale = torch.as_tensor(scale).to(device)
    shift = given.shift
    if shift is not None:
        shift = torch.as_tensor(shift).to(device)
    return ChannelMap(scale, shift, given.rotation)


def _readers(root: nn.Module, link: Link) -> list[tuple[nn.Module, Layer]]:
    """Return the members' modules, each once, with the first member that each of them is."""
    found: dict[int, tuple[nn.Module, Layer]] = {}
    for member in link.members:
        module = root.get_submodule(member.path)
        found.setdefault(id(module), (module, member))
    return list(found.values())


def _write(root: nn.Module, name: str, change: ChannelMap, *, offset: bool) -> None:
    """Let a norm or convolution write the changed value.

    Its gain or weight is divided, its shift or bias is moved too.
    """
    path, _, leaf = name.rpartition(".")
    owner = root.get_submodule(path)
    old = getattr(owner, leaf).detach()
    own = change if leaf == "bias" else ChannelMap(change.scale)
    if offset:
        # The norm multiplies by one more than the gain that it stores.
        gain = 1 + old.float()
        new = own.apply(gain) - 1
    else:
        new = own.apply(old, axis=0)
    set_tensor(root, name, new.to(old.dtype))


def _read(
    root: nn.Module, module: nn.Module, change: ChannelMap, member: Layer
) -> None:
    """Let a member's weight read the changed value; its bias takes in a shift, and is made where
    there is none."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    old = weight.detach()
    if member.op.type == "linear":
        described = member.op.weight
        is_turned = described is not None and described.channel_axis == 1
        rows = old.t() if is_turned else old
        matrix = change.reader(rows)
        if is_turned:
            matrix = matrix.t()
        new = matrix.contiguous()
        if change.shift is not None:
            _move_bias(module, rows, change)
    else:
        groups = module.groups
        assert isinstance(groups, int)
        new = change.grouped_reader(old, groups)
    name = f"{member.path}.weight" if member.path else "weight"
    set_tensor(root, name, new.to(old.dtype))


def _move_bias(module: nn.Module, rows: Tensor, change: ChannelMap) -> None:
    bias = getattr(module, "bias", None)
    if bias is not None:
        bias = bias.detach()
    moved = change.reader_bias(rows, bias)
    assert moved is not None
    moved = moved.to(rows.dtype)
    # This module's alone: another that shared the bias reads something else.
    module._parameters["bias"] = nn.Parameter(moved, requires_grad=False)
