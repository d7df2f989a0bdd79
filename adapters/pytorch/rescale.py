"""Links over which channel scales may be moved without changing the model's function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from octavo.core.channels import Factors as Given
from octavo.core.channels import channel_maps
from octavo.core.graph import Group

from .layers import Layer
from .skeleton import set_tensor, skeleton

Tensor = torch.Tensor


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
        names = tuple(f"{path}.{n}" for n in ("weight", "bias") if getattr(norm, n, None) is not None)
        offset = gain_of(norm) == "offset"
        gain, shift = ("", "") if offset else (names[0], names[1] if len(names) > 1 else "")
        label, readers = f"{path} -> {members[0].op.name}", tuple(m.op.name for m in members)
        group = Group(label, "rescale", readers, path, weight.numel(), value, gain=gain, shift=shift)
        return cls(group, names, tuple(members), "norm", offset)

    @classmethod
    def of_conv(cls, producer: Layer, members: Sequence[Layer], value: str) -> Link:
        """Link a convolution (its batch norm, if it has one) to the convolutions that read it."""
        assert producer.op.weight is not None
        path = producer.norm or producer.path
        names = (f"{path}.weight", *((f"{path}.bias",) if producer.op.bias else ()))
        channels = producer.op.weight.shape[0]
        group = Group(
            f"{producer.op.name} -> {members[0].op.name}", "rescale", tuple(m.op.name for m in members), producer.op.name, channels, value
        )
        return cls(group, names, tuple(members), "conv")


Factors = Mapping[str, Tensor]
"""Op name -> float32 (inputs,): multipliers of a linear layer's input that no other layer could take in."""


def input_link(members: Sequence[Layer], value: str) -> Link:
    """Link a value to the linear layers that read it: they multiply it as they quantize it, which costs nothing there."""
    weight = members[0].op.weight
    assert weight is not None
    group = Group(
        f"{value} -> {members[0].op.name}", "rescale", tuple(m.op.name for m in members), "", weight.shape[1 - weight.channel_axis], value
    )
    return Link(group, (), tuple(members), "input")


class Multiply:
    """A forward hook that multiplies the input by one factor per channel."""

    def __init__(self, factors: Tensor) -> None:
        self.factors = factors

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return the arguments, the first one multiplied."""
        return (args[0] * self.factors.to(args[0].dtype), *args[1:])


def install(root: nn.Module, layers: Mapping[str, Layer], factors: Factors) -> None:
    """Let the float layers of a skeleton multiply their input, before any other hook of theirs."""
    for name, factor in factors.items():
        module = root.get_submodule(layers[name].path)
        module.register_forward_pre_hook(Multiply(factor), prepend=True)


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
    if not isinstance(weight, nn.Parameter) or weight.ndim != 1 or own - {"weight", "bias"} or not weight.is_floating_point():
        return ""
    if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.GroupNorm | nn.modules.instancenorm._InstanceNorm):
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
            near: Callable[[Tensor], bool] = lambda y: torch.allclose(y, expected, rtol=1e-2, atol=1e-3)  # noqa: E731
            if near(divided(weight.detach() / factors)):
                return "weight"
            return "offset" if near(divided((1 + weight.detach()) / factors - 1)) else ""
        except (RuntimeError, TypeError, ValueError):
            return ""


def rescaled(root: nn.Module, links: Mapping[str, Link], factors: Mapping[str, Given], own: Factors) -> tuple[nn.Module, Factors]:
    """Return a skeleton with other channel scales, and the factors that stay with its layers.

    Every tensor that no link touches is shared.

    Raises:
        SchemeError: If a group is unknown or its factors do not fit.
    """
    twin = skeleton(root)
    kept = dict(own)
    for group, change in channel_maps((link.group for link in links.values()), factors):
        link, f = links[group.name], torch.as_tensor(change.scale, dtype=torch.float32)
        for tensor_name in link.divided:
            _divide(twin, tensor_name, f, link.offset and tensor_name.endswith(".weight"))
        seen: set[int] = set()
        for member in link.members:
            if link.kind == "input":
                kept[member.op.name] = (kept[member.op.name] / f) if member.op.name in kept else 1 / f
            module = twin.get_submodule(member.path)
            weight = module.weight
            assert isinstance(weight, Tensor)
            if id(weight) not in seen:
                set_tensor(twin, f"{member.path}.weight" if member.path else "weight", _multiplied(weight.detach(), f, member, module))
                new = module.weight
                assert isinstance(new, Tensor)
                seen.add(id(new))
    return twin, kept


def _divide(root: nn.Module, name: str, factors: Tensor, offset: bool) -> None:
    path, _, leaf = name.rpartition(".")
    old = getattr(root.get_submodule(path), leaf).detach()
    f = factors.to(old.device).reshape(-1, *[1] * (old.ndim - 1))
    new = (1 + old.float()) / f - 1 if offset else old.float() / f
    set_tensor(root, name, new.to(old.dtype))


def _multiplied(weight: Tensor, factors: Tensor, member: Layer, module: nn.Module) -> Tensor:
    f = factors.to(weight.device)
    if member.op.type == "linear":
        shaped = f if member.op.weight is not None and member.op.weight.channel_axis == 0 else f[:, None]
    else:
        groups = module.groups
        assert isinstance(groups, int)
        # Output channel o belongs to group o // (outputs / groups) and reads that group's input channels.
        shaped = f.reshape(groups, -1).repeat_interleave(weight.shape[0] // groups, 0).reshape(*weight.shape[:2], *[1] * (weight.ndim - 2))
    return (weight.float() * shaped).to(weight.dtype)
