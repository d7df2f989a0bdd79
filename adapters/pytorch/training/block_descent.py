"""Descent for one block: steps over batches, and the best state that was met."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from octavo.core.contract.training import Reconstruction

from .block_calls import BlockCall
from .learned_linear import (
    GridLinear,
    LearnedLinear,
    State,
    multiplies_in_half,
    scale_groups,
)
from .signed_rounding import SignedLinear

Tensor = torch.Tensor
_TINY = 1e-20
"""Least power of the targets: a block may put out zeros, and the loss is divided by it."""

_ADAM_RATE = 0.02
_ADAM_SCALE_RATE = 0.002
"""Of a step at the start, in scales and relative to the scale.

Found on a Llama of 12 million parameters at 2 bits, 40 steps: larger ones overshoot.
"""


@dataclass(frozen=True, slots=True)
class Task:
    """What one block is to learn.

    Attributes:
        calls: How it is called.
        inputs: Hidden states that the quantized blocks before it put out.
        targets: What the float block makes of the float model's hidden states.
    """

    calls: Sequence[BlockCall]
    inputs: Sequence[Tensor]
    targets: Sequence[Tensor]

    def __len__(self) -> int:
        return len(self.calls)

    @property
    def device(self) -> str:
        """Type of the device that it is learned on."""
        return self.inputs[0].device.type

    def rows(self, index: int) -> int:
        """Return how many sequences a call has."""
        hidden = self.inputs[index]
        return hidden.shape[0] if hidden.ndim > 2 else 1

    def error(self, block: nn.Module, index: int, *, half: bool = False) -> Tensor:
        """Return the squared error of one call's output, tokens of padding left out.

        Args:
            block: The block with learned layers.
            index: Of the call.
            half: Multiply in bfloat16.
        """
        hidden = self.inputs[index]
        is_half = half and multiplies_in_half(self.device)
        with torch.autocast(self.device, torch.bfloat16, enabled=is_half):
            y = self.calls[index](block, hidden)
        return self._distance(y, index)

    def _distance(self, y: Tensor, index: int) -> Tensor:
        error = y.float() - self.targets[index].float()
        valid = self.calls[index].valid
        if valid is not None:
            error = error * valid
        return (error**2).sum()

    @torch.no_grad()
    def errors(self, block: nn.Module, *, half: bool = False) -> list[float]:
        """Return the squared error of each call's output."""
        return [float(self.error(block, i, half=half)) for i in range(len(self))]

    @torch.no_grad()
    def outputs(self, block: nn.Module) -> tuple[list[Tensor], float]:
        """Return what the block puts out, call by call, and the squared error of all together."""
        outputs = []
        total = 0.0
        for index, (call, hidden) in enumerate(
            zip(self.calls, self.inputs, strict=True)
        ):
            y = call(block, hidden)
            outputs.append(y)
            total += float(self._distance(y, index))
        return outputs, total

    def power(self) -> float:
        """Return the mean square of a target."""
        squares = [float((target.float() ** 2).sum()) for target in self.targets]
        return max(sum(squares) / len(squares), _TINY)


def descend(
    block: nn.Module,
    modules: Sequence[GridLinear],
    task: Task,
    settings: Reconstruction,
) -> list[Tensor]:
    """Learn a block, and leave it in the best state that was met.

    While learning, a state is judged by the batches of its step alone, over what these cost at the
    start. Then all batches decide between the best of them and the start.

    Args:
        block: The block with learned layers.
        modules: These layers; changed.
        task: What it is to learn.
        settings: How long and how fast.

    Returns:
        What the block puts out then, call by call.
    """
    if not modules or not settings.iterations:
        return task.outputs(block)[0]
    start = State(modules)
    costs = task.errors(block)
    before = sum(costs)
    if settings.half and multiplies_in_half(task.device):
        costs = task.errors(block, half=True)
    best = _Best(costs, modules)
    _steps(block, modules, task, settings, best)
    best.state.restore()
    outputs, after = task.outputs(block)
    # In this form an error that has become NaN is no better.
    is_better = after < before
    if is_better:
        return outputs
    start.restore()
    return task.outputs(block)[0]


class _Best:
    """The best state that was met.

    Args:
        costs: What each call costs at the start: some batches are harder than others.
        modules: The layers.

    Attributes:
        state: The best so far.
    """

    def __init__(self, costs: Sequence[float], modules: Sequence[nn.Module]) -> None:
        self.state = State(modules)
        self._costs = costs
        self._modules = modules
        self._share = 1.0

    def take(self, chosen: Sequence[int], cost: float) -> None:
        """Keep the layers' state where the chosen calls cost less in it than in the best so far."""
        usual = max(sum(self._costs[index] for index in chosen), _TINY)
        if cost / usual < self._share:
            self._share = cost / usual
            self.state = State(self._modules)


def _steps(
    block: nn.Module,
    modules: Sequence[GridLinear],
    task: Task,
    settings: Reconstruction,
    best: _Best,
) -> None:
    """Go down the squared error of the block's output, some sequences a step."""
    move = _mover(modules, settings)
    order = drawn(task, settings)
    power = task.power()
    for step in range(settings.iterations):
        chosen = next(order)
        total = 0.0
        for index in chosen:
            with torch.enable_grad():
                cost = task.error(block, index, half=settings.half)
                (cost / (power * len(chosen))).backward()  # type: ignore[no-untyped-call]
            total += float(cost.detach())
        # The cost is that of the state before the step.
        best.take(chosen, total)
        move(1.0 - step / settings.iterations)


def drawn(task: Task, settings: Reconstruction) -> Iterator[list[int]]:
    """Yield the calls of each step: all in a random order, then all again in another."""
    generator = torch.Generator().manual_seed(settings.seed)
    waiting: list[int] = []
    while True:
        chosen: list[int] = []
        rows = 0
        while rows < settings.rows and len(chosen) < len(task):
            if not waiting:
                waiting = torch.randperm(len(task), generator=generator).tolist()
            index = waiting.pop()
            chosen.append(index)
            rows += task.rows(index)
        yield chosen


def _mover(
    modules: Sequence[GridLinear], settings: Reconstruction
) -> Callable[[float], None]:
    """Return what moves the layers by a share of the first step, after each backward."""
    if settings.optimizer == "signed":
        return _signed(modules, settings)
    return _adam(modules, settings)


def _signed(
    modules: Sequence[GridLinear], settings: Reconstruction
) -> Callable[[float], None]:
    rate = 1 / settings.iterations if settings.rate is None else settings.rate
    of_range = rate if settings.scale_rate is None else settings.scale_rate
    learned = [module for module in modules if isinstance(module, SignedLinear)]

    def move(share: float) -> None:
        for module in learned:
            module.step(rate * share, of_range * share)

    return move


def _adam(
    modules: Sequence[GridLinear], settings: Reconstruction
) -> Callable[[float], None]:
    rate = _ADAM_RATE if settings.rate is None else settings.rate
    of_scales = _ADAM_SCALE_RATE if settings.scale_rate is None else settings.scale_rate
    learned = [module for module in modules if isinstance(module, LearnedLinear)]
    offsets = {"params": [m.offset for m in learned], "lr": rate}
    groups = [offsets, *scale_groups(learned, of_scales)]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.95))
    full = [group["lr"] for group in optimizer.param_groups]

    def move(share: float) -> None:
        for group, at_start in zip(optimizer.param_groups, full, strict=True):
            group["lr"] = at_start * share
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return move
