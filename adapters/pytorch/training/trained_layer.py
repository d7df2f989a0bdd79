"""A layer of quantization-aware training: it computes with quantized weight and input, and learns.

Esser et al. 2020, "Learned Step Size Quantization" (LSQ), eqs. 1 to 3, the gradient scale 1 /
sqrt(N Qp) of section 2.2 and the start 2 <|v|> / sqrt(Qp) of section 2.1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from octavo.adapters.pytorch.modules.shared_copy import (
    copy_hooks,
    copy_settings,
    skeleton,
)
from octavo.core.contract.adapter import OpParameters
from octavo.core.numerics.affine import (
    QuantParams,
    affine_params,
    integer_range,
    middle_code,
    narrow,
)
from octavo.core.numerics.layout import spread
from octavo.core.numerics.ranges import token_params
from octavo.core.numerics.scales import rounded_scale
from octavo.core.numerics.tensor import QuantizedTensor
from octavo.core.values.scheme import QuantSpec

from .straight_through import round_to_grid, stored_passed

Tensor = torch.Tensor
_TINY = 1e-12
"""Least step: kernels take positive scales."""


def positive_levels(spec: QuantSpec) -> int:
    """Return Qp of LSQ: how many levels lie above zero.

    Unsigned codes that stand for signed numbers have their zero in the middle.
    """
    _, high = integer_range(spec)
    return high - middle_code(spec) if spec.symmetric else high


def scaled_gradient(x: Tensor, factor: float) -> Tensor:
    """Return ``x`` with its gradient multiplied.

    LSQ's balance between a step size and the values that it serves (section 2.2).
    """
    scaled = x * factor
    # Its value is that of x to the last bit: what is converted rounds by that.
    return x.detach() + (scaled - scaled.detach())


def positive(step: Tensor) -> Tensor:
    """Return the size of a step, at least 1e-12, with a gradient everywhere.

    LSQ lets a step be learned across zero, where its grid is turned over. Kernels take positive
    scales: a negative step stands for its size, while it is trained and when it is converted.
    """
    size = torch.where(step < 0, -step, step)
    return size + (size.clamp_min(_TINY) - size).detach()


def learned_step(v: Tensor, step: Tensor, zero: Tensor, spec: QuantSpec) -> Tensor:
    """Return values on their grid, with gradients of the values and of the step.

    LSQ's eqs. 1 to 3: v^ = s clip(round(v / s), -Qn, Qp). dv^/dv is 1 where -Qn < v / s < Qp, and 0
    elsewhere; dv^/ds is round(v / s) - v / s there, and the end of the range elsewhere. A zero
    point moves both ends: -Qn = qmin - z and Qp = qmax - z (Bhalgat et al. 2020, "LSQ+").

    Args:
        v: Values.
        step: s, positive; broadcasts against ``v``.
        zero: z, likewise.
        spec: Its dtype has the range.
    """
    low, high = integer_range(spec)
    bottom, top = low - zero, high - zero
    ratio = v / step
    # At an end of the range and beyond it a value is that end, whatever v and s are.
    at_end = torch.minimum(torch.maximum(ratio, bottom), top).detach()
    is_inside = (ratio > bottom) & (ratio < top)
    clipped = torch.where(is_inside, ratio, at_end)
    rounded = clipped + (torch.round(clipped) - clipped).detach()
    return rounded * step


class TrainedLayer(nn.Module):
    """A layer with one weight under training, with learned step sizes.

    A batch norm is folded in at the start with its running statistics, which thereby are frozen
    (Krishnamoorthi 2018, section 3.2).

    Args:
        module: The float module: how it computes, and what models look at on it.
        weight: As the op uses it (batch norm folded). A parameter is trained as it is, and so stays
            tied to whoever else reads it; any other tensor is copied as float32.
        bias: Likewise, or None.
        parameters: Where the step sizes start.
        step: The weight's step, where another layer that reads the same weight learns it already.

    Attributes:
        looks: While True, the input's step is set to 2 <|x|> / sqrt(Qp) of the inputs that come.
    """

    bias: Tensor | None
    input_scale: Tensor | None
    input_zero: Tensor
    zero: Tensor

    def __init__(
        self,
        module: nn.Module,
        weight: Tensor,
        bias: Tensor | None,
        parameters: OpParameters,
        step: nn.Parameter | None = None,
    ) -> None:
        super().__init__()
        assert parameters.weight is not None
        start = parameters.weight.params
        self.spec: QuantSpec = start.spec
        self.axis = start.axis
        self.weight = weight if isinstance(weight, nn.Parameter) else _own(weight)
        self.bias = None if bias is None else _own(bias)
        self.step = _own(start.scale) if step is None else step
        self.register_buffer("zero", start.zero_point.float())
        # In a list: its own tensors are not trained.
        self._float = [_without_tensors(module, bias)]
        copy_settings(module, self)
        copy_hooks(module, self)
        assert isinstance(module.weight, Tensor)
        self.dtype = module.weight.dtype
        self.source = parameters.scheme.input
        self.dynamic = parameters.scheme.mode == "dynamic"
        self.looks = False
        self.input_scale = None
        input_zero = None
        given = _static_input(parameters)
        if given is not None:
            self.input_scale = _own(given.scale)
            input_zero = given.zero_point.float()
        self.register_buffer("input_zero", input_zero)

    def forward(self, x: Tensor, *others: Any, **named: Any) -> Tensor:
        """Return the layer's output, its weight and input quantized."""
        weight = self.quantized_weight()
        if self.source is not None:
            x = self._quantized_input(x, self.source)
        # Tables take whole numbers; all others multiply in the type of their input.
        dtype = x.dtype if x.is_floating_point() else self.dtype
        tensors = {"weight": weight.to(dtype)}
        if self.bias is not None:
            tensors["bias"] = self.bias.to(dtype)
        given = (x, *others)
        y: Tensor = functional_call(self._float[0], tensors, given, named)
        return y

    def quantized_weight(self) -> Tensor:
        """Return the weight on its grid, float32, with gradients."""
        served = self.weight.numel() / self.step.numel()
        factor = (served * positive_levels(self.spec)) ** -0.5
        step = stored_passed(positive(self.step), self.spec)
        step = scaled_gradient(step, factor)
        on_grid = partial(learned_step, spec=self.spec)
        return self._spread(on_grid, self.weight.float(), step, self.zero)

    def _spread(
        self, function: Callable[..., Tensor], values: Tensor, *parameters: Tensor
    ) -> Tensor:
        """Apply a function to values and the parameters that each of them shares with others."""
        result: Tensor = spread(function, values, self.spec, self.axis, *parameters)
        return result

    def _quantized_input(self, x: Tensor, spec: QuantSpec) -> Tensor:
        values = x.float()
        if self.dynamic:
            return on_its_own_range(values, spec).to(x.dtype)
        if self.input_scale is None:
            return x
        if self.looks:
            self._look(values, spec)
        factor = (_features(x) * positive_levels(spec)) ** -0.5
        step = scaled_gradient(positive(self.input_scale), factor)
        return learned_step(values, step, self.input_zero, spec).to(x.dtype)

    def start_as_paper(self) -> None:
        """Let the weight's steps begin at 2 <|w|> / sqrt(Qp), where its grid is symmetric."""
        if not self.spec.symmetric:
            return
        sizes = self.weight.detach().float().abs()
        means = self._mean_by_step(sizes)
        with torch.no_grad():
            self.step.copy_(2 * means / positive_levels(self.spec) ** 0.5)
            # All weights that share it are zero: any step will do.
            self.step[means == 0] = 1.0

    def _mean_by_step(self, values: Tensor) -> Tensor:
        """Return the mean of the values that share each step, in the shape of the steps."""
        step = torch.ones_like(self.step, requires_grad=True)

        def total(of: Tensor) -> Tensor:
            # The derivative of a sum of products by a factor is the sum of what it multiplies.
            products = self._spread(torch.mul, of, step)
            (found,) = torch.autograd.grad(products.sum(), step)
            return found

        with torch.enable_grad():
            return total(values) / total(torch.ones_like(values))

    @torch.no_grad()
    def _look(self, values: Tensor, spec: QuantSpec) -> None:
        low, _ = integer_range(spec)
        outer = middle_code(spec) if spec.symmetric else low
        size = values.abs().mean()
        # A zero point inside the range belongs to the range that it was calibrated with.
        if self.input_scale is None or float(self.input_zero) != outer or size == 0:
            return
        self.input_scale.copy_(2 * size / positive_levels(spec) ** 0.5)

    @torch.no_grad()
    def result(self, start: OpParameters) -> OpParameters:
        """Return what was learned in the form that the post-training path takes."""
        assert start.weight is not None
        inputs = self._learned_inputs(start)
        bias = None if self.bias is None else self.bias.detach().clone()
        weight = self.learned_weight(start.weight)
        return replace(start, weight=weight, inputs=inputs, bias=bias)

    @torch.no_grad()
    def learned_weight(self, old: QuantizedTensor) -> QuantizedTensor:
        """Return codes and steps as they are now.

        Args:
            old: What they were at the start.
        """
        low, high = integer_range(self.spec)

        def codes_of(values: Tensor, step: Tensor, zero: Tensor) -> Tensor:
            return (torch.round(values / step) + zero).clamp(low, high)

        step = positive(self.step.detach())
        params, extra = rounded_scale(replace(old.params, scale=step.clone()))
        weight = self.weight.detach().float()
        codes = self._spread(codes_of, weight, params.scale, self.zero)
        return QuantizedTensor(narrow(codes.contiguous(), self.spec), params, extra)

    def _learned_inputs(self, start: OpParameters) -> tuple[QuantParams | None, ...]:
        if self.input_scale is None or start.inputs[0] is None:
            return start.inputs
        scale = positive(self.input_scale.detach()).clone()
        learned: QuantParams = replace(start.inputs[0], scale=scale)
        return (learned, *start.inputs[1:])


def on_its_own_range(x: Tensor, spec: QuantSpec) -> Tensor:
    """Return values on the grid that a dynamic kernel would choose for them."""
    seen = x.detach()
    if spec.granularity == "token":
        params = token_params(seen, spec)
    else:
        params = affine_params(seen.amin(), seen.amax(), spec)
    return round_to_grid(x, params.scale, params.zero_point.float(), spec)


def _features(x: Tensor) -> int:
    """Return N of LSQ for inputs: the features of one sample, whatever the batch's size."""
    sample = x.shape[1:] if x.ndim > 1 else x.shape
    return max(1, sample.numel())


def _own(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach().float().clone())


def _without_tensors(module: nn.Module, bias: Tensor | None) -> nn.Module:
    """Return a twin of a layer that holds no numbers: they are given with each call."""
    twin = skeleton(module)
    for table in (twin._forward_hooks, twin._forward_pre_hooks):
        table.clear()
    for name, tensor in twin._parameters.items():
        if tensor is not None:
            twin._parameters[name] = nn.Parameter(tensor.detach().to("meta"))
    if bias is not None and twin._parameters.get("bias") is None:
        twin._parameters["bias"] = nn.Parameter(bias.detach().to("meta"))
    return twin


def _static_input(parameters: OpParameters) -> QuantParams | None:
    """Return the parameters of the input's range where it is fixed."""
    if parameters.scheme.mode != "static" or not parameters.inputs:
        return None
    return parameters.inputs[0]
