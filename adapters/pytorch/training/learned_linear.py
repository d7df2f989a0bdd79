"""Linear layers whose rounding and scales are learned, in reconstruction and in distillation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from octavo.adapters.pytorch.capture.layers import Layer
from octavo.adapters.pytorch.modules.kinds import is_transposed_linear
from octavo.adapters.pytorch.modules.shared_copy import set_submodule
from octavo.core.contract.adapter import OpParameters
from octavo.core.numerics.affine import integer_range, is_integer
from octavo.core.numerics.tensor import QuantizedTensor

from .straight_through import grouped, round_to_grid

Tensor = torch.Tensor
_REACH = 0.49
"""An offset starts below half a step, where rounding would be a draw."""


class LearnedLinear(nn.Module):
    """A linear layer whose weight lies on a grid and whose rounding and scales can be learned.

    Args:
        weight: The float weight.
        bias: Its bias, or None.
        start: The quantized weight to start from.
        transposed: Both are stored as (inputs, outputs).
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
        self.code_type = start.codes.dtype
        matrix = weight.float()
        codes = start.codes
        if transposed:
            matrix = matrix.t().contiguous()
            codes = codes.t().contiguous()
        # A copy: it is learned in place, and the start's is the realizer's, which other trials use.
        scale = start.params.scale.to(torch.float32, copy=True)
        zero = start.params.zero_point.float()
        if scale.ndim == 1:
            scale = scale[:, None]
            zero = zero[:, None]
        self.shape = matrix.shape
        self.weight = grouped(matrix, scale)
        codes = grouped(codes, scale).float()
        if self.weight.ndim == 3:
            scale = scale[..., None]
            zero = zero[..., None]
        self.scale = nn.Parameter(scale)
        self.zero = zero
        ratio = self.weight / scale
        # Where the start's algorithm rounded otherwise than to nearest, its choice is the centre.
        centre = codes - zero
        nearby = (ratio - centre).clamp(-_REACH, _REACH)
        offset = centre + nearby - ratio
        self.offset = nn.Parameter(offset)
        self.bias = None if bias is None else bias.detach()

    def quantized_weight(self) -> Tensor:
        """Return the weight on its grid, (outputs, inputs)."""
        weight = round_to_grid(
            self.weight, self.scale, self.zero, self.spec, self.offset
        )
        return weight.view(self.shape)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output."""
        return nn.functional.linear(x, self.quantized_weight(), self.bias)

    @torch.no_grad()
    def result(self, start: QuantizedTensor) -> QuantizedTensor:
        """Return the learned codes and scales in the form of ``start``."""
        low, high = integer_range(self.spec)
        scale = self.scale.detach()
        rounded = torch.round(self.weight / scale + self.offset)
        steps = (rounded + self.zero).clamp(low, high)
        codes = steps.view(self.shape).to(self.code_type)
        if self.transposed:
            codes = codes.t().contiguous()
        own_scale = scale.reshape(start.params.scale.shape).clone()
        params = replace(start.params, scale=own_scale)
        return QuantizedTensor(codes, params)


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
    return is_integer(weight.params.spec) and weight.extra is None


def install_learned(
    twin: nn.Module, places: Mapping[str, str], parameters: Mapping[str, OpParameters]
) -> dict[str, LearnedLinear]:
    """Put learned layers in the place of float ones.

    Args:
        twin: A copy of the model, or of a block.
        places: Op name -> path of its layer in ``twin``.
        parameters: Op name -> where to start from.

    Returns:
        Op name -> its layer.
    """
    made: dict[str, LearnedLinear] = {}
    for name, path in places.items():
        old = twin.get_submodule(path)
        start = parameters[name].weight
        assert isinstance(old.weight, Tensor)
        assert start is not None
        weight = old.weight.detach()
        bias = getattr(old, "bias", None)
        transposed = is_transposed_linear(old)
        new = LearnedLinear(weight, bias, start, transposed=transposed)
        made[name] = new
        set_submodule(twin, path, new)
    return made


def learned_parameters(
    made: Mapping[str, LearnedLinear], parameters: Mapping[str, OpParameters]
) -> dict[str, OpParameters]:
    """Return the parameters of ops with what their layers learned in place of the start."""
    found: dict[str, OpParameters] = {}
    for name, module in made.items():
        own = parameters[name]
        assert own.weight is not None
        learned = module.result(own.weight)
        found[name] = replace(own, weight=learned)
    return found


def scale_groups(modules: Sequence[LearnedLinear], rate: float) -> list[dict[str, Any]]:
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


def learn_or_leave(
    modules: Sequence[LearnedLinear],
    cost: Callable[[], float],
    learn: Callable[[], None],
) -> None:
    """Learn, and go back to the start where all batches together say that it was better.

    Args:
        modules: The layers.
        cost: Returns the loss over all batches.
        learn: Changes the layers.
    """
    start = []
    for module in modules:
        offset = module.offset.detach().clone()
        scale = module.scale.detach().clone()
        start.append((offset, scale))
    with torch.no_grad():
        before = cost()
    learn()
    with torch.no_grad():
        # In this form a loss that has become NaN is no better.
        is_better = cost() < before
        if is_better:
            return
        for module, (offset, scale) in zip(modules, start, strict=True):
            module.offset.copy_(offset)
            module.scale.copy_(scale)
