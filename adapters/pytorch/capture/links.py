"""Links over which channels may be changed without changing the model's function."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from octavo.core.numerics.channels import EVERY, ChannelMap, norm_steps
from octavo.core.values.graph import Group

from .layers import Layer
from .norms import gain_of

Tensor = torch.Tensor
Own = tuple[ChannelMap, ...]
InputMaps = Mapping[str, Own]
"""Op name -> maps of a linear layer's input, in order, as few as can be."""


@dataclass(frozen=True)
class Link:
    """A rescale group, and which tensors it divides and multiplies.

    Attributes:
        group: As the core sees it.
        divided: Names of tensors whose first axis is divided by the factors.
        offset: The producer's gain is 1 + weight, not weight.
        summed: Paths of the batch norms whose outputs are added up, where there are several.
        members: The consumers.
        kind: What the producer is.
    """

    group: Group
    divided: tuple[str, ...]
    members: tuple[Layer, ...]
    kind: Literal["norm", "layer", "input"]
    offset: bool = False
    summed: tuple[str, ...] = ()

    @classmethod
    def of_norm(
        cls, path: str, norm: nn.Module, members: Sequence[Layer], value: str
    ) -> Link:
        """Link a normalisation to the layers that read it."""
        weight = norm.weight
        assert isinstance(weight, Tensor)
        has_shift = getattr(norm, "bias", None) is not None
        offset = gain_of(norm) == "offset"
        group = Group(
            f"{path} -> {members[0].op.name}",
            "rescale",
            _names(members),
            producer=path,
            channels=weight.numel(),
            value=value,
            gain=f"{path}.weight",
            shift=f"{path}.bias" if has_shift else "",
            takes=EVERY,
            online=norm_steps(has_shift=has_shift),
            offset=offset,
        )
        divided = (f"{path}.weight", *((f"{path}.bias",) if has_shift else ()))
        return cls(group, divided, tuple(members), "norm", offset)


def input_link(
    members: Sequence[Layer], value: str, path: str = "", norm: nn.Module | None = None
) -> Link:
    """Link a value to the linear layers that read it.

    They multiply it as they quantize it, which costs nothing there. Shifts and rotations are steps
    of their own before the products.

    Args:
        members: The layers.
        value: What they read.
        path: Of a norm that writes the value, for others too.
        norm: That norm.
    """
    weight = members[0].op.weight
    assert weight is not None
    has_shift = getattr(norm, "bias", None) is not None
    group = Group(
        f"{value} -> {members[0].op.name}",
        "rescale",
        _names(members),
        producer="",
        channels=weight.shape[1 - weight.channel_axis],
        value=value,
        gain=f"{path}.weight" if norm is not None else "",
        shift=f"{path}.bias" if has_shift else "",
        takes=EVERY,
        online=EVERY,
        offset=norm is not None and gain_of(norm) == "offset",
    )
    return Link(group, (), tuple(members), "input")


def norm_of_sum(root: nn.Module, links: Iterable[Link], name: str) -> Tensor | None:
    """Return the gain or the shift of a sum of batch norms' outputs, by its name in a group.

    As if they were independent: means add up, and so do variances. None for any other name.
    """
    for link in links:
        if not link.summed or name not in (link.group.gain, link.group.shift):
            continue
        norms = [root.get_submodule(path) for path in link.summed]
        if name == link.group.shift:
            return torch.stack([_vector(norm.bias) for norm in norms]).sum(0)
        gains = torch.stack([_vector(norm.weight) for norm in norms])
        return gains.square().sum(0).sqrt()
    return None


def _vector(parameter: object) -> Tensor:
    assert isinstance(parameter, Tensor)
    return parameter.detach().float()


def _names(members: Sequence[Layer]) -> tuple[str, ...]:
    return tuple(layer.op.name for layer in members)
