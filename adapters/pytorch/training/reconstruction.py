"""Block reconstruction: a whole block's rounding is learned from what the block puts out.

Cheng et al. 2024, "Optimize Weight Rounding via Signed Gradient Descent for the Quantization of
LLMs" (AutoRound): block after block, each fed with what the quantized blocks before it put out, the
best state that was met is kept. Only one block's activations and offsets are alive at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile

import torch
from torch import nn

from octavo.adapters.pytorch.capture.blocks import blocks_of, is_in
from octavo.adapters.pytorch.capture.layers import Layer
from octavo.adapters.pytorch.modules.shared_copy import (
    frozen,
    set_submodule,
    skeleton,
)
from octavo.adapters.pytorch.run.batches import Call
from octavo.core.contract.adapter import OpParameters
from octavo.core.contract.training import Reconstruction
from octavo.core.errors import DataError, SchemeError

from .block_calls import BlockCall, BlockCalls, block_calls
from .block_descent import Task, descend
from .learned_linear import (
    GridLinear,
    LearnedLinear,
    install_learned,
    learnable,
    learned_parameters,
)
from .signed_rounding import SignedLinear

Tensor = torch.Tensor


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
        DataError: If there is no batch.
    """
    wanted = learnable(layers, parameters)
    paths = blocks_of(root, (layers[name] for name in wanted))
    if not paths:
        raise SchemeError(
            "there is no repeated block with an integer weight-only linear layer to reconstruct"
        )
    batches = list(calls)
    if not batches:
        raise DataError("block reconstruction needs at least one batch")
    line = Line(root, paths, batches)
    learned = dict(parameters)
    is_signed = settings.optimizer == "signed"
    kind: type[GridLinear] = SignedLinear if is_signed else LearnedLinear
    for path in paths:
        task = line.task(path)
        if task is None:
            continue
        # In a list of its own, for a block may be a single layer.
        place = nn.ModuleList([frozen(root.get_submodule(path))])
        inside = _places_in(path, layers, wanted)
        made = install_learned(place, inside, wanted, kind)
        outputs = descend(place[0], list(made.values()), task, settings)
        learned |= learned_parameters(made, wanted)
        line.take(path, place[0], task, outputs)
    return learned


def _places_in(
    block: str, layers: Mapping[str, Layer], wanted: Iterable[str]
) -> dict[str, str]:
    """Return the ops whose layers lie in a block -> their paths, the block being called 0."""
    inside = {}
    for name in wanted:
        path = layers[name].path
        if is_in(path, block):
            inside[name] = f"0{path.removeprefix(block)}"
    return inside


class Line:
    """The blocks one after another, in the float model and in the quantized one so far.

    A block that is fed with what the block before puts out, and nothing else of it, takes that
    block's outputs. For any other (the first one, one behind a block that stays float, the first of
    a decoder) both models run once more, up to it.

    Args:
        root: The float model.
        paths: Of the blocks, in order.
        batches: Calibration batches.
    """

    def __init__(
        self, root: nn.Module, paths: Sequence[str], batches: Sequence[Call]
    ) -> None:
        self._root = root
        self._batches = batches
        self._paths = tuple(paths)
        self._seen = block_calls(root, paths, batches)
        # In the quantized model, behind a block for which it ran.
        self._there: dict[str, Sequence[BlockCall]] = {}
        self._learned: dict[str, nn.Module] = {}
        self._exact: Sequence[Tensor] = ()
        self._quantized: Sequence[Tensor] = ()

    def task(self, path: str) -> Task | None:
        """Return what a block is to learn; None for one that no batch reaches."""
        own = self._seen.pop(path)
        if not own.calls:
            return None
        calls = self._there.pop(path, own.calls)
        exact, quantized = self._exact, self._quantized
        if not own.follows:
            own = self._watched(self._root, path)
            exact, quantized, calls = own.hidden, own.hidden, own.calls
            if self._learned:
                calls, quantized = self._of_quantized(path, own)
        block = self._root.get_submodule(path)
        with torch.no_grad():
            pairs = zip(own.calls, exact, strict=True)
            targets = [call(block, hidden) for call, hidden in pairs]
        return Task(calls, quantized, targets)

    def _watched(self, model: nn.Module, path: str) -> BlockCalls:
        return block_calls(model, [path], self._batches)[path]

    def _of_quantized(
        self, path: str, exact: BlockCalls
    ) -> tuple[Sequence[BlockCall], Sequence[Tensor]]:
        """Return a block's calls and hidden states in the quantized model.

        Where it is called otherwise there (routed tokens), the float model's are all there is.
        """
        model = skeleton(self._root)
        for before, block in self._learned.items():
            set_submodule(model, before, block)
        found = block_calls(model, [path, *self._behind(path)], self._batches)
        own = found.pop(path)
        if [h.shape for h in own.hidden] != [h.shape for h in exact.hidden]:
            return exact.calls, exact.hidden
        # What they are given beside their hidden state may come from quantized blocks too.
        for after, others in found.items():
            if len(others.calls) == len(own.calls):
                self._there[after] = others.calls
        return own.calls, own.hidden

    def _behind(self, path: str) -> list[str]:
        """Return the blocks that follow one, each fed with what the one before puts out."""
        behind = self._paths[self._paths.index(path) + 1 :]
        return list(takewhile(lambda p: self._seen[p].follows, behind))

    def take(
        self, path: str, block: nn.Module, task: Task, outputs: Sequence[Tensor]
    ) -> None:
        """Take in a block that has learned, and what it puts out."""
        self._learned[path] = block
        self._exact = task.targets
        self._quantized = outputs
