"""Quantization-aware training: an ordinary training loop over quantized weights and inputs.

```python
prepared = session.training().prepare_qat(recipe, realizer.parameters(recipe))
optimizer = torch.optim.Adam(prepared.native.parameters(), lr=1e-4)
...                              # your loop over prepared.native
candidate = prepared.convert()   # on the same integer kernels as after post-training quantization
```
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from octavo.adapters.pytorch.capture.capture import Capture
from octavo.adapters.pytorch.capture.folding import folded
from octavo.adapters.pytorch.capture.layers import Layer
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
from octavo.core.numerics.affine import is_integer
from octavo.core.values.recipe import Recipe

from .trained_layer import TrainedLayer


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
        SchemeError: If a scheme is not integer, or a layer cannot be trained.
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
        self._layers: dict[str, TrainedLayer] = {}
        self.module = _trainable_copy(capture.root)
        for name, decided in parameters.items():
            layer = capture.layers[name]
            _check_trainable(layer, decided)
            weight, bias = folded(layer, capture.root)
            module = capture.root.get_submodule(layer.path)
            trained = TrainedLayer(module, weight, bias, decided)
            self._layers[name] = trained
            self._install(layer, trained)

    def _install(self, layer: Layer, trained: TrainedLayer) -> None:
        # A model that is a single layer is replaced by it.
        if not layer.path:
            self.module = trained
            return
        set_submodule(self.module, layer.path, trained)
        if layer.norm:
            set_submodule(self.module, layer.norm, nn.Identity())

    @property
    def native(self) -> nn.Module:
        """The module to train."""
        return self.module

    def convert(self) -> Candidate:
        """Return the trained model on the kernels that the recipe names."""
        root = skeleton(self._float_root)
        for name, tensor in self._float_tensors(root).items():
            set_tensor(root, name, tensor.detach())
        learned = {
            name: layer.result(self._parameters[name])
            for name, layer in self._layers.items()
        }
        return self._over(root).apply(self._recipe, learned)

    def _float_tensors(self, root: nn.Module) -> dict[str, torch.Tensor]:
        """Return the trained tensors of what stays float, ties by their first name."""
        of_layers: set[str] = set()
        for path, module in self.module.named_modules():
            if isinstance(module, TrainedLayer):
                prefix = f"{path}." if path else ""
                of_layers |= {f"{prefix}{name}" for name in named_tensors(module)}
        left_out = of_layers | aliases(root).keys()
        trained = named_tensors(self.module)
        return {
            name: tensor for name, tensor in trained.items() if name not in left_out
        }


def _trainable_copy(float_root: nn.Module) -> nn.Module:
    """Return a skeleton whose tensors are copies: training changes them."""
    root = skeleton(float_root)
    for name, tensor in named_tensors(root).items():
        set_tensor(root, name, tensor.detach().clone(), trained=tensor.requires_grad)
    return root


def _check_trainable(layer: Layer, decided: OpParameters) -> None:
    op = layer.op
    if layer.functional:
        raise SchemeError(
            f"op {op.name!r} is a functional call, which training does not reach: make it a layer, "
            "or keep it float"
        )
    has_integer_weight = decided.weight is not None and is_integer(
        decided.weight.params.spec
    )
    if op.type not in ("linear", "conv") or not has_integer_weight:
        raise SchemeError(
            f"op {op.name!r} ({op.type}, [{decided.scheme}]): only integer linear and convolution "
            "layers are trained"
        )
