"""Distillation: all layers' scales and rounding are learned together, from the float predictions.

Chen et al. 2024, "EfficientQAT" (end-to-end training of quantization parameters): where a block's
output error says little about the model's, a few steps on the whole model say more. Every layer's
offsets and scales, and all activations of one batch, are alive at once, so this is for models that
would fit a training step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import torch
from torch import nn

from octavo.adapters.pytorch.capture.layers import Layer
from octavo.adapters.pytorch.modules.shared_copy import frozen
from octavo.adapters.pytorch.run.batches import Call, tensors_in
from octavo.core.contract.adapter import OpParameters
from octavo.core.contract.training import Distillation
from octavo.core.errors import DataError, SchemeError

from .learned_linear import (
    LearnedLinear,
    install_learned,
    learn_or_leave,
    learnable,
    learned_parameters,
    scale_groups,
)

Tensor = torch.Tensor


def distill(
    root: nn.Module,
    layers: Mapping[str, Layer],
    parameters: Mapping[str, OpParameters],
    calls: Iterable[Call],
    settings: Distillation,
    teacher: nn.Module | None = None,
) -> dict[str, OpParameters]:
    """Learn scales and rounding of every integer weight-only linear layer.

    The goal is the float model's first output.

    Args:
        root: The float model; not changed.
        layers: Op name -> layer.
        parameters: Where to start from.
        calls: Calibration batches.
        settings: How long and how fast.
        teacher: Whose predictions are the goal; None for the float model.

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
    made = install_learned(twin, {name: layers[name].path for name in wanted}, wanted)
    modules = list(made.values())
    goal = _Goal(root if teacher is None else teacher, twin, batches, settings)
    learn_or_leave(modules, goal.total, partial(_descend, goal, modules, settings))
    return {**parameters, **learned_parameters(made, wanted)}


class _Goal:
    """Cross entropy of the learned model's predictions against the teacher's.

    The teacher's are made once a batch.
    """

    def __init__(
        self,
        teacher: nn.Module,
        twin: nn.Module,
        batches: Sequence[Call],
        settings: Distillation,
    ) -> None:
        self.batches = batches
        self._twin = twin
        self._settings = settings
        self._device = next(twin.parameters()).device.type
        self._targets: list[Tensor] = []
        with torch.no_grad():
            for call in batches:
                # They are held for all batches at once, in half the bytes.
                odds = self._log_odds(teacher, call).exp()
                self._targets.append(odds.to(torch.bfloat16))

    def loss(self, index: int) -> Tensor:
        """Return the loss on one batch."""
        log_odds = self._log_odds(self._twin, self.batches[index])
        return -(self._targets[index] * log_odds).sum(-1).mean()

    def total(self) -> float:
        """Return the loss on all batches."""
        return sum(float(self.loss(i)) for i in range(len(self.batches)))

    def _log_odds(self, model: nn.Module, call: Call) -> Tensor:
        args, kwargs = call
        with torch.autocast(self._device, torch.bfloat16, enabled=self._settings.half):
            logits = next(tensors_in(model(*args, **kwargs)))
        return torch.log_softmax(logits.float() / self._settings.temperature, -1)


def _descend(
    goal: _Goal, modules: Sequence[LearnedLinear], settings: Distillation
) -> None:
    """Move scales and offsets down the loss, one batch a step."""
    learns_rounding = settings.rate > 0
    groups = scale_groups(modules, settings.scale_rate)
    for module in modules:
        module.offset.requires_grad_(learns_rounding)
    if learns_rounding:
        groups.append({"params": [m.offset for m in modules], "lr": settings.rate})
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: 1.0 - i / settings.steps
    )
    for step in range(settings.steps):
        with torch.enable_grad():
            loss = goal.loss(step % len(goal.batches))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
