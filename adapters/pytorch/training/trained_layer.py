"""A layer of quantization-aware training: it computes with quantized weight and input, and learns.

Esser et al. 2020, "Learned Step Size Quantization", eqs. 1 to 3 and the gradient scale
1 / sqrt(N * qmax).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from octavo.adapters.pytorch.kernels.activation import Activation
from octavo.adapters.pytorch.modules.kinds import is_transposed_linear
from octavo.core.contract.adapter import OpParameters
from octavo.core.numerics.affine import QuantParams, integer_range
from octavo.core.numerics.tensor import QuantizedTensor
from octavo.core.values.scheme import QuantSpec

from .straight_through import grouped, round_to_grid

Tensor = torch.Tensor
_TINY = 1e-12
"""Least scale: kernels take positive ones."""


def _scaled_gradient(x: Tensor, factor: float) -> Tensor:
    """Return ``x`` with its gradient multiplied.

    LSQ's balance between a step size and the weights that it serves (section 2.2).
    """
    return (x - x * factor).detach() + x * factor


class TrainedLayer(nn.Module):
    """A linear or convolution layer under training, with learned step sizes.

    A batch norm is folded in at the start with its running statistics, which thereby are frozen
    (Krishnamoorthi 2018, section 3.2).

    Args:
        module: The float module.
        weight: float32, as the op uses it (batch norm folded).
        bias: Likewise, or None.
        parameters: Where the step sizes start.
    """

    input_scale: Tensor | None
    input_zero: Tensor
    zero: Tensor

    def __init__(
        self,
        module: nn.Module,
        weight: Tensor,
        bias: Tensor | None,
        parameters: OpParameters,
    ) -> None:
        super().__init__()
        assert parameters.weight is not None
        start = parameters.weight.params
        self.spec: QuantSpec = start.spec
        self.transposed = is_transposed_linear(module)
        self.weight = _own_parameter(weight)
        self.bias = None if bias is None else _own_parameter(bias)
        step = self._spread(start.scale, weight.ndim)
        zero = self._spread(start.zero_point.float(), weight.ndim)
        self.step = _own_parameter(step)
        self.register_buffer("zero", zero)
        # In a list: its own tensors are not trained.
        self.module = [module]
        self.source = parameters.scheme.input
        self.dynamic = parameters.scheme.mode == "dynamic"
        self.input_scale = None
        input_zero = None
        given = _static_input(parameters)
        if given is not None:
            self.input_scale = _own_parameter(given.scale)
            input_zero = given.zero_point.float()
        self.register_buffer("input_zero", input_zero)

    def _spread(self, parameter: Tensor, ndim: int) -> Tensor:
        """Return scales or zero points in a shape that broadcasts against the (grouped) weight."""
        if parameter.ndim == 0:
            return parameter
        if parameter.ndim == 2:
            return parameter[..., None]
        shape = [1] * ndim
        shape[1 if self.transposed else 0] = -1
        return parameter.reshape(shape)

    @property
    def _is_grouped(self) -> bool:
        return self.step.ndim == 3 and self.weight.ndim == 2

    def _in_groups(self, weight: Tensor) -> Tensor:
        """Return a matrix as (outputs, groups, inputs of a group)."""
        matrix = weight.t() if self.transposed else weight
        return grouped(matrix, self.step[..., 0])

    def _from_groups(self, values: Tensor) -> Tensor:
        """Return what :meth:`_in_groups` made of a matrix, in the weight's own form."""
        shape = self.weight.shape
        if not self.transposed:
            return values.reshape(shape)
        return values.reshape(shape[::-1]).t()

    def quantized_weight(self) -> Tensor:
        """Return the weight on its grid, with gradients."""
        _, high = integer_range(self.spec)
        served = self.weight.numel() / self.step.numel()
        factor = (served * high) ** -0.5
        step = _scaled_gradient(self.step, factor)
        if not self._is_grouped:
            return round_to_grid(self.weight, step, self.zero, self.spec)
        groups = self._in_groups(self.weight)
        rounded = round_to_grid(groups, step, self.zero, self.spec)
        return self._from_groups(rounded)

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        """Return the layer's output, its weight and input quantized."""
        weight = self.quantized_weight()
        if self.source is not None:
            x = self._quantized_input(x, self.source)
        module = self.module[0]
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            result: Tensor = module._conv_forward(x, weight, self.bias)
            return result
        if self.transposed:
            weight = weight.t()
        return nn.functional.linear(x, weight, self.bias)

    def _quantized_input(self, x: Tensor, spec: QuantSpec) -> Tensor:
        if self.input_scale is not None:
            _, high = integer_range(spec)
            # LSQ counts the features of one sample, whatever the batch's size.
            served = x[0].numel()
            positive = self.input_scale.abs()
            factor = (served * high) ** -0.5
            step = _scaled_gradient(positive, factor)
            return round_to_grid(x, step, self.input_zero, spec)
        return _on_its_own_range(x, spec) if self.dynamic else x

    @torch.no_grad()
    def result(self, start: OpParameters) -> OpParameters:
        """Return what was learned in the form that the post-training path takes."""
        weight = self._learned_weight(start)
        inputs = self._learned_inputs(start)
        bias = None if self.bias is None else self.bias.detach().clone()
        return replace(start, weight=weight, inputs=inputs, bias=bias)

    def _learned_weight(self, start: OpParameters) -> QuantizedTensor:
        assert start.weight is not None
        old = start.weight
        low, high = integer_range(self.spec)
        # Kernels take positive scales, and a step may have been learned across zero.
        step = self.step.detach().abs().clamp_min(_TINY)
        weight = self.weight.detach()
        if self._is_grouped:
            weight = self._in_groups(weight)
        steps = torch.round(weight / step) + self.zero
        codes = steps.clamp(low, high)
        if self._is_grouped:
            codes = self._from_groups(codes).contiguous()
        codes = codes.reshape(old.codes.shape).to(old.codes.dtype)
        scale = step.reshape(old.params.scale.shape).clone()
        params = replace(old.params, scale=scale)
        return QuantizedTensor(codes, params)

    def _learned_inputs(self, start: OpParameters) -> tuple[QuantParams | None, ...]:
        if self.input_scale is None or start.inputs[0] is None:
            return start.inputs
        scale = self.input_scale.detach().abs().clone()
        learned: QuantParams = replace(start.inputs[0], scale=scale)
        return (learned, *start.inputs[1:])


def _own_parameter(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach().float().clone())


def _static_input(parameters: OpParameters) -> QuantParams | None:
    """Return the parameters of the input's range where it is fixed."""
    if parameters.scheme.mode != "static" or not parameters.inputs:
        return None
    return parameters.inputs[0]


def _on_its_own_range(x: Tensor, spec: QuantSpec) -> Tensor:
    """Return values on the grid that a dynamic kernel would choose for them."""
    if spec.granularity == "token":
        largest = x.detach().abs().amax(-1, keepdim=True)
        scale = largest.clamp_(min=_TINY) / 127
        zeros = torch.zeros_like(scale)
        return round_to_grid(x, scale, zeros, spec)
    form = Activation.around(x.detach(), spec.symmetric)
    # Kernels take codes of uint8; a symmetric scheme's own are signed.
    shift = 128 if spec.symmetric else 0
    zero = torch.tensor(float(form.zero_point - shift))
    scale = torch.tensor(form.scale)
    return round_to_grid(x, scale, zero, spec)
