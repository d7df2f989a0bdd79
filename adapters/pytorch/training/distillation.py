"""Distillation: scales and rounding of all layers are learned together, from the float model's own predictions.

Chen et al. 2024, "EfficientQAT" (end-to-end training of quantization parameters): where a block's output error says little about
the model's, a few steps on the whole model say more. Every layer's offsets and scales, and all activations of one batch, are
alive at once, so this is for models that would fit a training step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import nn

from octavo.adapters.pytorch.capture.layers import Layer
from octavo.adapters.pytorch.modules.kinds import is_transposed_linear
from octavo.adapters.pytorch.modules.shared_copy import frozen, set_submodule
from octavo.adapters.pytorch.run.batches import Call, tensors_in
from octavo.core.contract.adapter import OpParameters
from octavo.core.contract.training import Distillation
from octavo.core.errors import DataError, SchemeError

from .reconstruction import LearnedLinear, learn_or_leave, learnable

Tensor = torch.Tensor


def distill(
    root: nn.Module,
    layers: Mapping[str, Layer],
    parameters: Mapping[str, OpParameters],
    calls: Iterable[Call],
    settings: Distillation,
) -> dict[str, OpParameters]:
    """Learn scales and rounding of every integer weight-only linear layer against the float model's first output.

    Args:
        root: The float model; not changed.
        layers: Op name -> layer.
        parameters: Where to start from.
        calls: Calibration batches.
        settings: How long and how fast.

    Returns:
        ``parameters`` with the learned weights in place.

    Raises:
        SchemeError: If no layer can be learned.
        DataError: If there is no batch.
    """
    wanted = learnable(layers, parameters)
    if not wanted:
        raise SchemeError("there is no integer weight-only linear layer to distill")
    batches = list(calls)
    if not batches:
        raise DataError("distillation needs at least one batch")
    twin = frozen(root)
    made: dict[str, LearnedLinear] = {}
    for name, decided in wanted.items():
        old = twin.get_submodule(layers[name].path)
        assert isinstance(old.weight, Tensor)
        assert decided.weight is not None
        made[name] = LearnedLinear(
            old.weight.detach(),
            getattr(old, "bias", None),
            decided.weight,
            transposed=is_transposed_linear(old),
        )
        set_submodule(twin, layers[name].path, made[name])
    modules, goal = list(made.values()), _Goal(root, twin, batches, settings)
    learn_or_leave(modules, goal.whole, lambda: _descend(goal, modules, settings))
    learned = dict(parameters)
    for name, module in made.items():
        start = wanted[name].weight
        assert start is not None
        learned[name] = replace(wanted[name], weight=module.result(start))
    return learned


class _Goal:
    """Cross entropy of the learned model's predictions against the float model's, which are made once a batch."""

    def __init__(
        self, root: nn.Module, twin: nn.Module, batches: list[Call], settings: Distillation
    ) -> None:
        self.batches = batches
        self._twin = twin
        self._settings = settings
        self._device = next(twin.parameters()).device.type
        with torch.no_grad():
            self._targets = [
                self._log_odds(root, call).exp().to(torch.bfloat16) for call in batches
            ]

    def loss(self, index: int) -> Tensor:
        """Return the loss on one batch."""
        return (
            -(self._targets[index] * self._log_odds(self._twin, self.batches[index])).sum(-1).mean()
        )

    def whole(self) -> float:
        """Return the loss on all batches."""
        return sum(float(self.loss(i)) for i in range(len(self.batches)))

    def _log_odds(self, model: nn.Module, call: Call) -> Tensor:
        with torch.autocast(self._device, torch.bfloat16, enabled=self._settings.half):
            logits = next(tensors_in(model(*call[0], **call[1])))
        return torch.log_softmax(logits.float() / self._settings.temperature, -1)


def _descend(goal: _Goal, modules: list[LearnedLinear], settings: Distillation) -> None:
    groups = [
        {"params": [m.scale], "lr": settings.scale_rate * float(m.scale.detach().abs().mean())}
        for m in modules
    ]
    for m in modules:
        m.offset.requires_grad_(settings.rate > 0)
    if settings.rate:
        groups.append({"params": [m.offset for m in modules], "lr": settings.rate})
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: 1.0 - i / settings.steps)
    for step in range(settings.steps):
        with torch.enable_grad():
            loss = goal.loss(step % len(goal.batches))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
