"""Quantization-aware training: the layers see quantized weights and inputs while an ordinary training loop runs.

```python
prepared = session.training().prepare_qat(recipe, realizer.parameters(recipe))
optimizer = torch.optim.Adam(prepared.native.parameters(), lr=1e-4)
...                              # your loop over prepared.native
candidate = prepared.convert()   # on the same integer kernels as after post-training quantization
```
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import nn

from octavo.adapters.pytorch.capture.capture import Capture
from octavo.adapters.pytorch.capture.folding import folded
from octavo.adapters.pytorch.capture.layers import Layer
from octavo.adapters.pytorch.kernels.activation import Activation
from octavo.adapters.pytorch.modules.kinds import is_transposed_linear
from octavo.adapters.pytorch.modules.shared_copy import (
    aliases,
    named_tensors,
    set_submodule,
    set_tensor,
    skeleton,
)
from octavo.core.contract.adapter import Candidate, OpParameters, Session
from octavo.core.contract.training import QatModel
from octavo.core.errors import SchemeError
from octavo.core.numerics.affine import QuantParams, integer_range, is_integer
from octavo.core.numerics.tensor import QuantizedTensor
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import QuantSpec

from .straight_through import grouped, round_to_grid

Tensor = torch.Tensor


def _scaled_gradient(x: Tensor, factor: float) -> Tensor:
    """Return ``x`` with its gradient multiplied: LSQ's balance between a step size and the weights it serves (section 2.2)."""
    return (x - x * factor).detach() + x * factor


class TrainedLayer(nn.Module):
    """A linear or convolution layer under training, with learned step sizes.

    Esser et al. 2020, "Learned Step Size Quantization", eqs. 1 to 3 and the gradient scale 1 / sqrt(N * qmax). A batch norm is
    folded in at the start with its running statistics, which thereby are frozen (Krishnamoorthi 2018, section 3.2).

    Args:
        layer: Which one.
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
        layer: Layer,
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
        self.weight = nn.Parameter(weight.detach().float().clone())
        self.bias = None if bias is None else nn.Parameter(bias.detach().float().clone())
        self.step = nn.Parameter(self._spread(start.scale.float(), weight.ndim).clone())
        self.register_buffer("zero", self._spread(start.zero_point.float(), weight.ndim))
        self.module = [module]  # in a list: its own tensors are not trained
        given = (
            parameters.inputs[0]
            if parameters.scheme.mode == "static" and parameters.inputs
            else None
        )
        self.dynamic = parameters.scheme.mode == "dynamic"
        self.source = None if parameters.scheme.input is None else parameters.scheme.input
        self.input_scale = (
            None if given is None else nn.Parameter(given.scale.detach().float().clone())
        )
        self.register_buffer("input_zero", None if given is None else given.zero_point.float())

    def _spread(self, parameter: Tensor, ndim: int) -> Tensor:
        if parameter.ndim == 0:
            return parameter
        if parameter.ndim == 2:
            return parameter[..., None]
        shape = [1] * ndim
        shape[1 if self.transposed else 0] = -1
        return parameter.reshape(shape)

    def quantized_weight(self) -> Tensor:
        """Return the weight on its grid, with gradients."""
        high = integer_range(self.spec)[1]
        step = _scaled_gradient(self.step, (self.weight.numel() / self.step.numel() * high) ** -0.5)
        matrix = (
            grouped(self.weight.t() if self.transposed else self.weight, self.step[..., 0])
            if self.step.ndim == 3 and self.weight.ndim == 2
            else self.weight
        )
        quantized = round_to_grid(matrix, step, self.zero, self.spec)
        if matrix is not self.weight:
            quantized = quantized.reshape(
                self.weight.t().shape if self.transposed else self.weight.shape
            )
            return quantized.t() if self.transposed else quantized
        return quantized

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        """Return the layer's output, its weight and input quantized."""
        weight = self.quantized_weight()
        if self.input_scale is not None and self.source is not None:
            high = integer_range(self.source)[1]
            step = _scaled_gradient(self.input_scale.abs(), (x[0].numel() * high) ** -0.5)
            x = round_to_grid(x, step, self.input_zero, self.source)
        elif self.dynamic and self.source is not None:
            x = self._on_its_range(x)
        module = self.module[0]
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            result: Tensor = module._conv_forward(x, weight, self.bias)
            return result
        return nn.functional.linear(x, weight.t() if self.transposed else weight, self.bias)

    def _on_its_range(self, x: Tensor) -> Tensor:
        assert self.source is not None
        if self.source.granularity == "token":
            scale = x.detach().abs().amax(-1, keepdim=True).clamp_(min=1e-12) / 127
            return round_to_grid(x, scale, torch.zeros_like(scale), self.source)
        form = Activation.around(x.detach(), self.source.symmetric)
        zero = form.zero_point - (128 if self.source.symmetric else 0)
        return round_to_grid(x, torch.tensor(form.scale), torch.tensor(float(zero)), self.source)

    @torch.no_grad()
    def result(self, start: OpParameters) -> OpParameters:
        """Return what was learned in the form that the post-training path takes."""
        assert start.weight is not None
        low, high = integer_range(self.spec)
        old = start.weight
        step = self.step.detach().abs().clamp_min(1e-12)
        matrix = self.weight.detach()
        if self.step.ndim == 3 and matrix.ndim == 2:
            matrix = grouped(matrix.t() if self.transposed else matrix, self.step[..., 0])
        codes = (torch.round(matrix / step) + self.zero).clamp(low, high).to(old.codes.dtype)
        codes = (
            codes.reshape(old.codes.t().shape).t().contiguous()
            if matrix.ndim == 3 and self.transposed
            else codes.reshape(old.codes.shape)
        )
        weight = QuantizedTensor(
            codes, replace(old.params, scale=step.reshape(old.params.scale.shape).clone())
        )
        inputs = start.inputs
        if self.input_scale is not None and inputs[0] is not None:
            learned: QuantParams = replace(inputs[0], scale=self.input_scale.detach().abs().clone())
            inputs = (learned, *inputs[1:])
        return replace(
            start,
            weight=weight,
            inputs=inputs,
            bias=None if self.bias is None else self.bias.detach().clone(),
        )


class TorchQatModel(QatModel):
    """A trainable copy of a model under a recipe, and the way back to kernels.

    Args:
        capture: The float model; not changed.
        recipe: What to quantize.
        parameters: From calibration: ``Realizer.parameters(recipe)``.
        over: Returns a session over another skeleton of the same structure.

    Attributes:
        module: Train this one. Layers that the recipe leaves in float train too.

    Raises:
        SchemeError: If a scheme is not integer.
    """

    def __init__(
        self,
        capture: Capture,
        recipe: Recipe,
        parameters: Mapping[str, OpParameters],
        over: Callable[[nn.Module], Session],
    ) -> None:
        self._float_root = capture.root
        self._over = over
        self._recipe = recipe
        self._parameters = dict(parameters)
        root = skeleton(capture.root)
        for name, tensor in named_tensors(root).items():
            set_tensor(root, name, tensor.detach().clone(), trained=tensor.requires_grad)
        self._layers: dict[str, TrainedLayer] = {}
        for name, decided in parameters.items():
            layer = capture.layers[name]
            if layer.functional:
                raise SchemeError(
                    f"op {name!r} is a functional call, which training does not reach: make it a layer, or keep it float"
                )
            if (
                layer.op.type not in ("linear", "conv")
                or decided.weight is None
                or not is_integer(decided.weight.params.spec)
            ):
                raise SchemeError(
                    f"op {name!r} ({layer.op.type}, [{decided.scheme}]): only integer linear and convolution layers are trained"
                )
            weight, bias = folded(layer, capture.root)
            trained = TrainedLayer(
                layer, capture.root.get_submodule(layer.path), weight, bias, decided
            )
            self._layers[name] = trained
            if not layer.path:
                root = trained
                continue
            set_submodule(root, layer.path, trained)
            if layer.norm:
                set_submodule(root, layer.norm, nn.Identity())
        self.module = root

    @property
    def native(self) -> nn.Module:
        """The module to train."""
        return self.module

    def convert(self) -> Candidate:
        """Return the trained model on the kernels that the recipe names."""
        root = skeleton(self._float_root)
        tied = aliases(root)
        trained = named_tensors(self.module)
        own = {
            name
            for path, m in self.module.named_modules()
            if isinstance(m, TrainedLayer)
            for name in (f"{path}.{n}" for n in named_tensors(m))
        }
        for name, tensor in trained.items():
            if name not in own and name not in tied:
                set_tensor(root, name, tensor.detach())
        learned = {
            name: layer.result(self._parameters[name]) for name, layer in self._layers.items()
        }
        return self._over(root).apply(self._recipe, learned)
