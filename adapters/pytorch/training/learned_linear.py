"""Linear layers whose rounding and scales are learned, in reconstruction and in distillation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from octavo.adapters.pytorch.capture.layers import Layer
from octavo.adapters.pytorch.modules.kinds import is_transposed_linear
from octavo.adapters.pytorch.modules.shared_copy import copy_hooks, set_submodule
from octavo.core.contract.adapter import OpParameters
from octavo.core.numerics.affine import integer_range, is_integer
from octavo.core.numerics.layout import stretch
from octavo.core.numerics.scales import has_movable_scales, rounded_scale
from octavo.core.numerics.tensor import QuantizedTensor
from octavo.core.values.sizes import block_shape, is_grouped

from .straight_through import round_to_grid, stored_passed

Tensor = torch.Tensor
_REACH = 0.49
"""An offset starts below half a step, where rounding would be a draw."""

Kind = TypeVar("Kind", bound="GridLinear")


class HasScale(Protocol):
    """A layer whose scales are learned by an optimizer."""

    scale: nn.Parameter


class GridLinear(nn.Module, ABC):
    """A linear layer whose weight lies on a grid that is learned; subclasses say what of it.

    Args:
        weight: The float weight.
        bias: Its bias, or None.
        start: The quantized weight to start from. A low-rank repair of it stays as it is, and what
            that leaves of the weight is rounded.
        transposed: Both are stored as (inputs, outputs).

    Attributes:
        weight: What is rounded, (rows, features), or in groups, (rows, groups, features of one).
        repair: What is added to the rounded weight, (rows, features); None for nothing.
        learns_range: Whether its scales may move: to any numbers, or to those that are stored.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        start: QuantizedTensor,
        *,
        transposed: bool,
    ) -> None:
        super().__init__()
        self.spec = start.params.spec
        self.transposed = transposed
        matrix = weight.float()
        codes = start.codes
        self.code_type = codes.dtype
        if transposed:
            matrix = matrix.t().contiguous()
            codes = codes.t().contiguous()
        self.shape = matrix.shape
        self.repair: Tensor | None = None
        if start.repair is not None:
            self.repair = start.repair.matrix()
            matrix = matrix - self.repair
        # Copies: they are learned in place, and the start's are the realizer's, which other trials
        # use.
        self.start_scale = start.params.scale.to(torch.float32, copy=True)
        self.start_zero = start.params.zero_point.to(torch.float32, copy=True)
        self.learns_range = has_movable_scales(self.spec)
        self.weight = self.viewed(matrix)
        self.centre = self.viewed(codes).float() - self.over(self.start_zero)
        self.bias = None if bias is None else bias.detach()
        self.begin()

    @abstractmethod
    def begin(self) -> None:
        """Make what is learned, as it is at the start."""

    @property
    def _has_whole_groups(self) -> bool:
        if not is_grouped(self.spec):
            return False
        tall, wide = block_shape(self.spec)
        return tall == 1 and self.shape[1] % wide == 0

    def viewed(self, matrix: Tensor) -> Tensor:
        """Return a matrix so that what :meth:`over` returns broadcasts against it."""
        if not self._has_whole_groups:
            return matrix
        _, wide = block_shape(self.spec)
        return matrix.reshape(self.shape[0], -1, wide)

    def over(self, parameter: Tensor) -> Tensor:
        """Return scales or zero points as they lie over the weight."""
        if self._has_whole_groups:
            return parameter[..., None]
        if is_grouped(self.spec):
            tall, wide = block_shape(self.spec)
            spread: Tensor = stretch(parameter, tuple(self.shape), tall, wide)
            return spread
        return parameter[:, None] if parameter.ndim == 1 else parameter

    def nearby(self) -> Tensor:
        """Return the weight in steps of the start's grid, less what its algorithm moved it.

        Where the start's code is not the nearest one, that choice is the centre.
        """
        ratio = self.weight / self.over(self.start_scale)
        return self.centre + (ratio - self.centre).clamp(-_REACH, _REACH)

    @abstractmethod
    def learned_grid(self) -> tuple[Tensor, Tensor]:
        """Return (scale, zero point) as they are now, in the start's shape, float32."""

    def grid(self) -> tuple[Tensor, Tensor]:
        """Return :meth:`learned_grid` with the scales as they will be stored."""
        scale, zero = self.learned_grid()
        return (stored_passed(scale, self.spec) if self.learns_range else scale), zero

    @abstractmethod
    def rounded(self) -> tuple[Tensor, Tensor | None]:
        """Return what is rounded, and what is added to it before, in steps."""

    def quantized_weight(self) -> Tensor:
        """Return the weight on its grid, with its repair, (outputs, inputs)."""
        scale, zero = self.grid()
        values, offset = self.rounded()
        weight = round_to_grid(
            values, self.over(scale), self.over(zero), self.spec, offset
        )
        weight = weight.reshape(self.shape)
        return weight if self.repair is None else weight + self.repair

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output."""
        return nn.functional.linear(x, self.quantized_weight(), self.bias)

    @torch.no_grad()
    def result(self, start: QuantizedTensor) -> QuantizedTensor:
        """Return the learned codes, scales and zero points in the form of ``start``."""
        low, high = integer_range(self.spec)
        scale, zero = self.learned_grid()
        zero_point = zero.to(start.params.zero_point.dtype).clone()
        params = replace(start.params, scale=scale.clone(), zero_point=zero_point)
        extra = start.extra
        if self.learns_range:
            params, extra = rounded_scale(params)
        scale = params.scale
        values, offset = self.rounded()
        # As round_to_grid does it: the codes of what was learned.
        ratio = values / self.over(scale)
        whole = torch.round(ratio if offset is None else ratio + offset)
        steps = (whole + self.over(zero)).clamp(low, high)
        codes = steps.reshape(self.shape).to(self.code_type)
        if self.transposed:
            codes = codes.t().contiguous()
        return QuantizedTensor(codes, params, extra, start.repair)


class LearnedLinear(GridLinear):
    """Learns offsets and scales, each for itself, as Adam moves them."""

    def begin(self) -> None:
        """Make offsets and scales."""
        ratio = self.weight / self.over(self.start_scale)
        self.offset = nn.Parameter(self.nearby() - ratio)
        self.scale = nn.Parameter(
            self.start_scale.clone(), requires_grad=self.learns_range
        )

    def learned_grid(self) -> tuple[Tensor, Tensor]:
        """Return the learned scale, and the start's zero point."""
        return self.scale, self.start_zero

    def rounded(self) -> tuple[Tensor, Tensor | None]:
        """Return the float weight and the learned offsets."""
        return self.weight, self.offset


def learnable(
    layers: Mapping[str, Layer], parameters: Mapping[str, OpParameters]
) -> dict[str, OpParameters]:
    """Return what can be learned.

    That are linear layers with integer weights of their own and float activations. A weight that an
    embedding looks up too stays as it is: what a head learns for itself would be a second copy.
    """
    users = Counter(id(own.weight) for own in parameters.values())
    found = {}
    for name, own in parameters.items():
        is_unshared = users[id(own.weight)] == 1
        if is_unshared and _fits(layers[name], own):
            found[name] = own
    return found


def _fits(layer: Layer, parameters: OpParameters) -> bool:
    weight = parameters.weight
    if layer.op.type != "linear" or layer.norm or layer.functional:
        return False
    if parameters.scheme.mode != "weight_only" or weight is None:
        return False
    spec = weight.params.spec
    return is_integer(spec) and (weight.extra is None or has_movable_scales(spec))


def install_learned(
    twin: nn.Module,
    places: Mapping[str, str],
    parameters: Mapping[str, OpParameters],
    kind: type[Kind],
) -> dict[str, Kind]:
    """Put learned layers in the place of float ones.

    Args:
        twin: A copy of the model, or of a block.
        places: Op name -> path of its layer in ``twin``.
        parameters: Op name -> where to start from.
        kind: Of the learned layers.

    Returns:
        Op name -> its layer.
    """
    made: dict[str, Kind] = {}
    for name, path in places.items():
        old = twin.get_submodule(path)
        start = parameters[name].weight
        assert isinstance(old.weight, Tensor)
        assert start is not None
        weight = old.weight.detach()
        bias = getattr(old, "bias", None)
        transposed = is_transposed_linear(old)
        new = kind(weight, bias, start, transposed=transposed)
        # What a rescaled layer does to its input first, and hooks of the model's own.
        copy_hooks(old, new)
        made[name] = new
        set_submodule(twin, path, new)
    return made


def learned_parameters(
    made: Mapping[str, GridLinear], parameters: Mapping[str, OpParameters]
) -> dict[str, OpParameters]:
    """Return the parameters of ops with what their layers learned in place of the start."""
    found: dict[str, OpParameters] = {}
    for name, module in made.items():
        own = parameters[name]
        assert own.weight is not None
        learned = module.result(own.weight)
        found[name] = replace(own, weight=learned)
    return found


def scale_groups(modules: Iterable[HasScale], rate: float) -> list[dict[str, Any]]:
    """Return an optimizer's groups in which each layer's scales move in steps of their own size.

    Args:
        modules: The layers.
        rate: Size of a step, relative to the mean scale of a layer.
    """
    groups: list[dict[str, Any]] = []
    for module in modules:
        mean_scale = float(module.scale.detach().abs().mean())
        groups.append({"params": [module.scale], "lr": rate * mean_scale})
    return groups


class State:
    """What layers have learned so far: a copy, and the way back to it.

    Args:
        modules: The layers.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._kept: list[tuple[Tensor, Tensor]] = []
        for module in modules:
            for parameter in module.parameters():
                self._kept.append((parameter, parameter.detach().clone()))

    @torch.no_grad()
    def restore(self) -> None:
        """Bring the layers back to it."""
        for parameter, value in self._kept:
            parameter.copy_(value)


def multiplies_in_half(device: str) -> bool:
    """True if products in bfloat16 are faster than in float32 on a type of device.

    A processor without instructions for them converts each number there and back: a step of block
    reconstruction then took several times as long as in float32.
    """
    if device != "cpu":
        return True
    tests = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    # torch has no public name for these; without them float32 is right too.
    return any(getattr(torch.cpu, name, bool)() for name in tests)
