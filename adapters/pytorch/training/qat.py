"""Quantization-aware training: an ordinary training loop over quantized weights and inputs.

```python
prepared = session.training().prepare_qat(recipe, realizer.parameters(recipe))
optimizer = torch.optim.Adam(prepared.native.parameters(), lr=1e-4)
...                              # your loop over prepared.native
candidate = prepared.convert()   # on the same integer kernels as after post-training quantization
```
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import nn

from octavo.adapters.pytorch.apply.input_maps import Online, install
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
from octavo.adapters.pytorch.modules.wrapping import inside
from octavo.adapters.pytorch.run.batches import Call
from octavo.core.contract.adapter import Candidate, OpParameters, Session
from octavo.core.contract.training import Qat, QatModel
from octavo.core.errors import ModelError, SchemeError
from octavo.core.numerics.affine import is_integer
from octavo.core.numerics.scales import has_movable_scales
from octavo.core.numerics.tensor import QuantizedTensor
from octavo.core.values.recipe import Recipe

from .trained_layer import TrainedLayer

_TRAINED = ("linear", "conv", "conv_transpose", "embedding")
"""Op types of layers with one weight."""


class TorchQatModel(QatModel):
    """A trainable copy of a model under a recipe, and the way back to kernels.

    Args:
        capture: The float model; not changed.
        recipe: What to quantize.
        parameters: From calibration: ``Realizer.parameters(recipe)``.
        over: Returns a session over another skeleton of the same structure.
        settings: Where step sizes begin.
        calls: One call is looked at where ``settings`` ask for that.

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
        settings: Qat | None = None,
        calls: Iterable[Call] = (),
    ) -> None:
        self._float_root = capture.root
        self._over = over
        self._recipe = recipe
        self._parameters = dict(parameters)
        self._paths = {name: capture.layers[name].path for name in parameters}
        self.module = _trainable_copy(capture.root)
        for name, decided in parameters.items():
            _check_trainable(capture.layers[name], decided)
        made = self._put_in(capture)
        in_float = {n: own for n, own in capture.factors.items() if n not in made}
        install(self.module, capture.layers, in_float)
        if settings is not None and settings.start == "lsq":
            _start_as_paper(self.module, list(made.values()), calls)

    def _put_in(self, capture: Capture) -> dict[str, TrainedLayer]:
        """Put a trained layer in the place of each that the recipe quantizes."""
        made: dict[str, TrainedLayer] = {}
        # Layers that read one weight under one scheme were given one quantized tensor.
        first: dict[int, TrainedLayer] = {}
        for name, decided in self._parameters.items():
            layer = capture.layers[name]
            module = self.module.get_submodule(layer.path)
            weight, bias = folded(layer, capture.root)
            if layer.is_tied:
                assert isinstance(module.weight, nn.Parameter)
                weight = module.weight.requires_grad_()
            known = first.get(id(decided.weight))
            step = None if known is None else known.step
            trained = TrainedLayer(module, weight, bias, decided, step)
            first.setdefault(id(decided.weight), trained)
            made[name] = trained
            own = capture.factors.get(name)
            if own:
                described = layer.op.weight
                assert described is not None
                change = Online(own, trained.weight, described.channel_axis)
                trained.register_forward_pre_hook(change)
            self._install(layer, trained)
        return made

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

    def train(
        self,
        train_fn: Callable[[Any], Any],
        seed: int = 0,
        run: Callable[..., Any] | None = None,
    ) -> nn.Module:
        """Return the module after a function trained it; torch's random numbers are its own
        meanwhile.

        Raises:
            SchemeError: If the function returns anything but None or a module.
        """
        if run is None:
            found = _seeded(train_fn, seed, self.module)
        else:
            found = run(_seeded, train_fn, seed, self.module)
        if isinstance(found, nn.Module):
            return found
        raise SchemeError(
            f"train_fn returned {type(found).__name__}; let it return None, or the module that "
            "it was given"
        )

    def convert(self, native: Any = None) -> Candidate:
        """Return the trained model on the kernels that the recipe names.

        Args:
            native: The trained module, a copy of it or a wrapper around it; None for
                :attr:`native`.

        Raises:
            ModelError: If it is another model.
        """
        trained = self.module if native is None else inside(native)
        layers = {name: _layer_at(trained, path) for name, path in self._paths.items()}
        root = skeleton(self._float_root)
        for name, tensor in _float_tensors(trained, root).items():
            # A copy: whoever goes on training must not change what was converted.
            set_tensor(root, name, tensor.detach().clone())
        learned = {
            name: layer.result(self._parameters[name]) for name, layer in layers.items()
        }
        return self._over(root).apply(self._recipe, self._tied(learned))

    def _tied(self, learned: Mapping[str, OpParameters]) -> dict[str, OpParameters]:
        """Let ops that were given one quantized tensor have one again."""
        first: dict[int, QuantizedTensor | None] = {}
        found = {}
        for name, decided in learned.items():
            start = self._parameters[name].weight
            weight = first.setdefault(id(start), decided.weight)
            found[name] = replace(decided, weight=weight)
        return found


def _layer_at(root: nn.Module, path: str) -> TrainedLayer:
    try:
        layer = root.get_submodule(path)
    except AttributeError:
        layer = root
    if isinstance(layer, TrainedLayer):
        return layer
    raise ModelError(
        f"the module has no trained layer at {path!r}: convert the one that prepare_qat returned, "
        "or a copy of it"
    )


def _float_tensors(trained: nn.Module, root: nn.Module) -> dict[str, torch.Tensor]:
    """Return the trained tensors of what stays float, by their first name in the float model."""
    of_layers: list[str] = []
    for path, module in trained.named_modules(remove_duplicate=False):
        if isinstance(module, TrainedLayer):
            of_layers.append(f"{path}." if path else "")
    first = aliases(root)
    found: dict[str, torch.Tensor] = {}
    for name, tensor in (
        *trained.named_parameters(remove_duplicate=False),
        *trained.named_buffers(remove_duplicate=False),
    ):
        if not name.startswith(tuple(of_layers)):
            found.setdefault(first.get(name, name), tensor)
    return found


@torch.no_grad()
def _start_as_paper(
    root: nn.Module, layers: Sequence[TrainedLayer], calls: Iterable[Call]
) -> None:
    """Let steps begin where the paper's do: of the inputs, on one batch."""
    for layer in layers:
        layer.start_as_paper()
        layer.looks = True
    for args, kwargs in islice(calls, 1):
        root(*args, **kwargs)
    for layer in layers:
        layer.looks = False


def _seeded(train_fn: Callable[[Any], Any], seed: int, module: nn.Module) -> Any:
    """Return what a function that trains returns, or the module that it trained in place.

    A function of its own, so that a child process can be given it.
    """
    devices = range(torch.cuda.device_count())
    with torch.random.fork_rng(devices), torch.enable_grad():
        torch.manual_seed(seed)
        found = train_fn(module)
    return module if found is None else found


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
    weight = decided.weight
    if op.type not in _TRAINED or weight is None or not is_integer(weight.params.spec):
        raise SchemeError(
            f"op {op.name!r} ({op.type}, [{decided.scheme}]): layers of the types "
            f"{', '.join(_TRAINED)} are trained, with integer weights; keep it float, or give it "
            "another scheme by a rule"
        )
    if weight.repair is not None:
        raise SchemeError(
            f"op {op.name!r} [{decided.scheme}]: training the weight leaves nothing to the "
            "low-rank repair of what its rounding did; leave low_rank out, or train updates "
            "over the repaired base (octavo.qlora)"
        )
    if not has_movable_scales(weight.params.spec):
        raise SchemeError(
            f"op {op.name!r} [{decided.scheme}]: step sizes are learned one by one; leave "
            "scale_dtype out, or take float16, bfloat16 or uint8"
        )
