"""Distillation: all layers' scales and rounding are learned together, from the float predictions.

Chen et al. 2024, "EfficientQAT" (end-to-end training of quantization parameters): where a block's
output error says little about the model's, a few steps on the whole model say more. Every layer's
offsets and scales, and all activations of one batch, are alive at once, so this is for models that
would fit a training step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

from octavo.adapters.pytorch.capture.layers import Layer
from octavo.adapters.pytorch.modules.shared_copy import frozen
from octavo.adapters.pytorch.run.batches import Call, tensors_in
from octavo.core.contract.adapter import OpParameters
from octavo.core.contract.recovery import held_back
from octavo.core.contract.training import Distillation
from octavo.core.errors import DataError, SchemeError

from .block_calls import token_mask, valid_tokens
from .learned_linear import (
    LearnedLinear,
    State,
    install_learned,
    learnable,
    learned_parameters,
    multiplies_in_half,
    scale_groups,
)
from .scaled_linear import ScaledLinear, with_movable_scales

Tensor = torch.Tensor
TWO_BIT_STEPS = 3
"""Steps of the grid for which rates of scales alone are said. A scale moves the weight at the end
of its grid by as many times itself as there are steps: on a finer grid the same rate would move it
by more than rounding did."""

Kind = LearnedLinear | ScaledLinear
"""What learns: offsets and scales, or scales alone."""

_VERDICTS = 4
"""How often they judge, on the way and at the end: each time costs as much as half a step."""


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
    scales_alone = settings.rate == 0
    wanted = learnable(layers, parameters)
    if scales_alone:
        wanted = with_movable_scales(wanted)
    if not wanted:
        raise SchemeError("there is no integer weight-only linear layer to distill")
    batches = list(calls)
    if not batches:
        raise DataError("distillation needs at least one batch")
    twin = frozen(root)
    places = {name: layers[name].path for name in wanted}
    kind: type[Kind] = ScaledLinear if scales_alone else LearnedLinear
    made = install_learned(twin, places, wanted, kind)
    goal = _Goal(root if teacher is None else teacher, twin, batches, settings)
    if not _descend(goal, list(made.values()), settings):
        return dict(parameters)
    return {**parameters, **learned_parameters(made, wanted)}


class _Goal:
    """Cross entropy of the learned model's predictions against the teacher's.

    The teacher's are made once a batch. Some batches are held back from learning: the few that
    calibration has are soon known by heart, and all that they say then is how well.

    Attributes:
        learned: Indices of the batches to learn from.
        held_back: Indices of those that judge; the same where there is one alone.
    """

    def __init__(
        self,
        teacher: nn.Module,
        twin: nn.Module,
        batches: Sequence[Call],
        settings: Distillation,
    ) -> None:
        indices = range(len(batches))
        self.held_back = list(held_back(len(batches)))
        others = [i for i in indices if i not in self.held_back]
        self.learned = others or self.held_back
        self.batches = batches
        self._twin = twin
        self._settings = settings
        self._device = next(twin.parameters()).device.type
        self._targets: list[Tensor] = []
        self._valid: list[Tensor | None] = []
        with torch.no_grad():
            for call in batches:
                # They are held for all batches at once, in half the bytes.
                odds = self._log_odds(teacher, call, half=settings.half).exp()
                self._targets.append(odds.to(torch.bfloat16))
                self._valid.append(valid_tokens(token_mask(teacher, call), odds))

    def loss(self, index: int, *, half: bool) -> Tensor:
        """Return the loss on one batch, a prediction; those for padding do not count."""
        log_odds = self._log_odds(self._twin, self.batches[index], half=half)
        surprise = -(self._targets[index] * log_odds).sum(-1)
        valid = self._valid[index]
        if valid is None:
            return surprise.mean()
        weights = valid[..., 0]
        return (surprise * weights).sum() / weights.sum().clamp(min=1)

    @torch.no_grad()
    def verdict(self) -> float:
        """Return the loss on the batches that are held back, in float32."""
        return sum(float(self.loss(i, half=False)) for i in self.held_back)

    def _log_odds(self, model: nn.Module, call: Call, *, half: bool) -> Tensor:
        args, kwargs = call
        is_half = half and multiplies_in_half(self._device)
        with torch.autocast(self._device, torch.bfloat16, enabled=is_half):
            result = model(*args, **kwargs)
        # Where a batch has labels, a loss comes before the predictions.
        logits = getattr(result, "logits", None)
        if not isinstance(logits, Tensor):
            logits = next(tensors_in(result))
        return torch.log_softmax(logits.float() / self._settings.temperature, -1)


def _descend(goal: _Goal, modules: Sequence[Kind], settings: Distillation) -> bool:
    """Move scales and offsets down the loss, one batch a step, and keep the best state.

    Returns:
        Whether that is another one than the start.
    """
    optimizer = _optimizer(modules, settings)
    full = [group["lr"] for group in optimizer.param_groups]
    best, lowest = State(modules), goal.verdict()
    start = lowest
    for step in range(settings.steps):
        share = 1.0 - step / settings.steps
        for group, rate in zip(optimizer.param_groups, full, strict=True):
            group["lr"] = rate * share
        index = goal.learned[step % len(goal.learned)]
        with torch.enable_grad():
            loss = goal.loss(index, half=settings.half)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if _is_judged(step, settings.steps):
            found = goal.verdict()
            # In this form a loss that has become NaN is no better.
            if found < lowest:
                best, lowest = State(modules), found
    best.restore()
    return lowest < start


def _is_judged(step: int, steps: int) -> bool:
    """Return whether the state after a step is judged: a few times, and at the end."""
    every = max(1, steps // _VERDICTS)
    return step == steps - 1 or step % every == every - 1


def _optimizer(
    modules: Sequence[Kind], settings: Distillation
) -> torch.optim.Optimizer:
    groups = scale_groups(modules, settings.scale_rate)
    for group, module in zip(groups, modules, strict=True):
        if isinstance(module, ScaledLinear):
            group["lr"] *= TWO_BIT_STEPS / module.steps
    offsets = [m.offset for m in modules if isinstance(m, LearnedLinear)]
    if offsets:
        groups.append({"params": offsets, "lr": settings.rate})
    return torch.optim.Adam(groups, betas=(0.9, 0.95))
