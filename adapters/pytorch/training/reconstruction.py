"""Block reconstruction: a whole block's rounding is learned from what the block puts out.

Cheng et al. 2024, "Optimize Weight Rounding via Signed Gradient Descent for the Quantization of
LLMs" (AutoRound): offsets v in [-1/2, 1/2] are added before rounding, scales are learned beside
them, block after block, each fed with what the quantized blocks before it put out. Only one
block's activations and offsets are alive at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from octavo.adapters.pytorch.capture.blocks import blocks_of
from octavo.adapters.pytorch.capture.layers import Layer
from octavo.adapters.pytorch.modules.shared_copy import frozen, skeleton
from octavo.adapters.pytorch.run.batches import Call, tensors_in
from octavo.core.contract.adapter import OpParameters
from octavo.core.contract.training import Reconstruction
from octavo.core.errors import SchemeError

from .learned_linear import (
    LearnedLinear,
    install_learned,
    learn_or_leave,
    learnable,
    learned_parameters,
    scale_groups,
)

Tensor = torch.Tensor
_TINY = 1e-20
"""Least power of the targets: a block may put out zeros, and the loss is divided by it."""


def reconstruct(
    root: nn.Module,
    layers: Mapping[str, Layer],
    parameters: Mapping[str, OpParameters],
    calls: Iterable[Call],
    settings: Reconstruction,
) -> dict[str, OpParameters]:
    """Learn the rounding of every weight-only linear layer that lies in a repeated block.

    Args:
        root: The float model; not changed.
        layers: Op name -> layer.
        parameters: Where to start from (round to nearest, GPTQ, ...).
        calls: Calibration batches.
        settings: How long and how fast.

    Returns:
        ``parameters`` with the learned weights in place.

    Raises:
        SchemeError: If no layer can be learned.
    """
    wanted = learnable(layers, parameters)
    paths = blocks_of(root, (layers[name] for name in wanted))
    if not paths:
        raise SchemeError(
            "there is no repeated block with an integer weight-only linear layer to reconstruct"
        )
    met = _Inputs(root, paths, calls)
    learned = dict(parameters)
    exact = quantized = met.hidden
    for path in paths:
        block = root.get_submodule(path)
        rest = met.rest.pop(path)
        with torch.no_grad():
            targets = list(_outputs(block, exact, rest))
        twin = frozen(block)
        places = _places_in(path, layers, wanted)
        made = install_learned(twin, places, wanted)
        task = _Task(twin, quantized, rest, targets)
        if made:
            modules = list(made.values())
            learn = partial(_descend, task, modules, settings)
            learn_or_leave(modules, task.cost, learn)
        learned |= learned_parameters(made, wanted)
        exact = targets
        quantized = task.outputs()
    return learned


def _places_in(
    block: str, layers: Mapping[str, Layer], wanted: Iterable[str]
) -> dict[str, str]:
    """Return the ops whose layers lie in a block -> their paths inside of it."""
    prefix = f"{block}."
    inside = {}
    for name in wanted:
        path = layers[name].path
        if path.startswith(prefix):
            inside[name] = path.removeprefix(prefix)
    return inside


class _Inputs:
    """What each block is called with, batch by batch; the hidden state of the first block only.

    Attributes:
        hidden: The hidden states that enter the first block.
        rest: Path of a block -> the other arguments of its calls.
    """

    def __init__(
        self, root: nn.Module, paths: Sequence[str], calls: Iterable[Call]
    ) -> None:
        self.rest: dict[str, list[Call]] = {path: [] for path in paths}
        self.hidden: list[Tensor] = []
        twin = skeleton(root)
        for path in paths:
            hook = self._hook(path, path == paths[0])
            block = twin.get_submodule(path)
            block.register_forward_pre_hook(hook, with_kwargs=True)
        with torch.no_grad():
            for args, kwargs in calls:
                twin(*args, **kwargs)

    def _hook(self, path: str, is_first: bool) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not args:
                raise SchemeError(
                    f"block {path!r} is called without a positional hidden state and cannot be "
                    "reconstructed by itself"
                )
            if is_first:
                self.hidden.append(args[0].detach())
            # A cache would remember one block's keys for the next call.
            others = {k: None if "past_key" in k else v for k, v in kwargs.items()}
            self.rest[path].append((args[1:], others))

        return hook


@dataclass(frozen=True, slots=True)
class _Task:
    """What one block is to learn.

    Attributes:
        block: The block with learned layers.
        inputs: Hidden states that the quantized blocks before it put out.
        rest: The other arguments of its calls.
        targets: What the float block makes of the float model's hidden states.
    """

    block: nn.Module
    inputs: Sequence[Tensor]
    rest: Sequence[Call]
    targets: Sequence[Tensor]

    def output(self, index: int) -> Tensor:
        """Return what the block puts out for one batch."""
        return _output(self.block, self.inputs[index], self.rest[index])

    @torch.no_grad()
    def outputs(self) -> list[Tensor]:
        """Return what the block puts out for all batches."""
        return list(_outputs(self.block, self.inputs, self.rest))

    def cost(self) -> float:
        """Return the squared error of the block's outputs, over all batches."""
        total = 0.0
        outputs = _outputs(self.block, self.inputs, self.rest)
        for y, target in zip(outputs, self.targets, strict=True):
            error = y.float() - target.float()
            total += float((error**2).sum())
        return total

    def power(self) -> float:
        """Return the mean square of the targets."""
        squares = [(target.float() ** 2).mean() for target in self.targets]
        return float(torch.stack(squares).mean())


def _output(block: nn.Module, hidden: Tensor, call: Call) -> Tensor:
    args, kwargs = call
    result = block(hidden, *args, **kwargs)
    return next(tensors_in(result))


def _outputs(
    block: nn.Module, inputs: Sequence[Tensor], rest: Sequence[Call]
) -> Iterator[Tensor]:
    for hidden, call in zip(inputs, rest, strict=True):
        yield _output(block, hidden, call)


def _descend(
    task: _Task, modules: Sequence[LearnedLinear], settings: Reconstruction
) -> None:
    """Move offsets and scales down the squared error of the block's output."""
    offsets = {"params": [m.offset for m in modules], "lr": settings.rate}
    groups = [offsets, *scale_groups(modules, settings.scale_rate)]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: 1.0 - i / settings.iterations
    )
    generator = torch.Generator().manual_seed(settings.seed)
    power = max(task.power(), _TINY)
    for _ in range(settings.iterations):
        index = int(torch.randint(len(task.inputs), (1,), generator=generator))
        is_half = settings.half and task.inputs[index].device.type == "cpu"
        with torch.enable_grad():
            with torch.autocast("cpu", torch.bfloat16, enabled=is_half):
                y = task.output(index)
            error = y.float() - task.targets[index].float()
            loss = (error**2).mean() / power
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
