"""Links over which channels may be changed without changing the model's function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
        members: The consumers.
        kind: What the producer is.
    """

    group: Group
    divided: tuple[str, ...]
    members: tuple[Layer, ...]
    kind: Literal["norm", "conv", "input"]
    offset: bool = False

    @classmethod
    def of_norm(
        cls, path: str, norm: nn.Module, members: Sequence[Layer], value: str
    ) -> Link:
        """Link a normalisation to the layers that read it."""
        weight = norm.weight
        assert isinstance(weight, Tensor)
        has_shift = getattr(norm, "bias", None) is not None
        offset = gain_of(norm) == "offset"
        gain = "" if offset else f"{path}.weight"
        shift = f"{path}.bias" if has_shift and not offset else ""
        group = Group(
            f"{path} -> {members[0].op.name}",
            "rescale",
            _names(members),
            producer=path,
            channels=weight.numel(),
            value=value,
            gain=gain,
            shift=shift,
            takes=EVERY,
            online=norm_steps(has_shift=has_shift),
        )
        divided = (f"{path}.weight", *((f"{path}.bias",) if has_shift else ()))
        return cls(group, divided, tuple(members), "norm", offset)

    @classmethod
    def of_conv(cls, producer: Layer, members: Sequence[Layer], value: str) -> Link:
        """Link a convolution (its batch norm, if it has one) to the convolutions that read it."""
        assert producer.op.weight is not None
        group = Group(
            f"{producer.op.name} -> {members[0].op.name}",
            "rescale",
            _names(members),
            producer=producer.op.name,
            channels=producer.op.weight.shape[0],
            value=value,
        )
        path = producer.norm or producer.path
        divided = (f"{path}.weight", *((f"{path}.bias",) if producer.op.bias else ()))
        return cls(group, divided, tuple(members), "conv")


def input_link(members: Sequence[Layer], value: str) -> Link:
    """Link a value to the linear layers that read it.

    They multiply it as they quantize it, which costs nothing there. Shifts and rotations are steps
    of their own before the products.
    """
    weight = members[0].op.weight
    assert weight is not None
    group = Group(
        f"{value} -> {members[0].op.name}",
        "rescale",
        _names(members),
        producer="",
        channels=weight.shape[1 - weight.channel_axis],
        value=value,
        takes=EVERY,
        online=EVERY,
    )
    return Link(group, (), tuple(members), "input")


def _names(members: Sequence[Layer]) -> tuple[str, ...]:
    return tuple(layer.op.name for layer in members)
