"""Runs of a module tree from one of its repeated blocks on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_leaves

from octavo.adapters.pytorch.modules.shared_copy import set_submodule
from octavo.adapters.pytorch.run.batches import Call, tensors_in

from .prefix_reuse import Recall, copied
from .watch import Halt, Watch

Tensor = torch.Tensor
Outputs = Mapping[int, Any]
"""Block number -> what the block before it put out."""
_PLAIN = (Tensor, bool, int, float, str, type(None))


class BlockWatch(Watch):
    """A run of a module tree from one of its repeated blocks on.

    The modules around the blocks run each time; the blocks before the start give back what the
    last of them put out. Kept are the input and the output of the last block that runs: values of
    one block may be asked for on several occasions.

    Args:
        twin: A skeleton of the model, with the hooks that observe.
        blocks: Paths of its blocks, in the order of their calls.
        start: Number of the first block that is run.
        stop: Number of the block before which the run ends; more than there are: it goes on to the
            model's end.
        beyond: Whether something is asked for between the block before ``stop`` and that one.
    """

    def __init__(
        self,
        twin: nn.Module,
        blocks: Sequence[str],
        start: int,
        stop: int,
        *,
        beyond: bool = False,
    ) -> None:
        self._twin = twin
        self._start = start
        self._recalls: list[Recall] = []
        for path in blocks[:start]:
            recall = Recall(twin.get_submodule(path), None)
            self._recalls.append(recall)
            set_submodule(twin, path, recall)
        self._reached: dict[int, Any] = {}
        if stop > len(blocks):
            return
        # Behind the last block that runs, and before it unless the run starts there.
        for place in range(max(start, stop - 2) + 1, stop + 1):
            is_last = place == stop and not beyond
            before = twin.get_submodule(blocks[place - 1])
            hook = partial(self._keep, place, is_last)
            before.register_forward_hook(hook)
        if stop < len(blocks):
            behind = twin.get_submodule(blocks[stop])
            behind.register_forward_pre_hook(_halt)

    def _keep(
        self, place: int, is_last: bool, _: nn.Module, __: Any, output: Any
    ) -> None:
        if is_last:
            self._reached[place] = output
            raise Halt
        # What follows may work in place.
        self._reached[place] = copied(output)

    def __call__(self, call: Call, kept: Outputs | None = None) -> Outputs:
        """Return block number -> what the block before it put out."""
        reached, _ = self.run(call, kept or {})
        return reached

    def run(self, call: Call, kept: Outputs) -> tuple[Outputs, Any]:
        """Return what :meth:`__call__` does, and the model's result where the run went that far."""
        args, kwargs = call
        start = self._start
        self._reached = {}
        if start:
            self._reached[start] = kept[start]
        for recall in self._recalls:
            recall.output = kept[start]
        result = None
        try:
            result = self._twin(*args, **kwargs)
        except Halt:
            pass
        finally:
            reached = self._reached
            self._reached = {}
            for recall in self._recalls:
                recall.output = None
        # What was made in the middle of a run pins all memory below it: it moves, and to where the
        # last block's was.
        spare = [output for place, output in kept.items() if place != start]
        for place, output in reached.items():
            if place != start:
                old = spare.pop() if spare else None
                reached[place] = _copied_into(old, output)
        return reached, result


def _copied_into(old: Any, output: Any) -> Any:
    """Return a copy, in the memory of ``old`` where that is built and shaped alike."""
    leaves, form = tree_flatten(output)
    places, old_form = tree_flatten(old)
    if form != old_form:
        return copied(output)
    pairs = list(zip(leaves, places, strict=True))
    if not all(_are_alike(leaf, place) for leaf, place in pairs):
        return copied(output)
    for leaf, place in pairs:
        if isinstance(leaf, torch.Tensor):
            place.copy_(leaf)
    return old


def _are_alike(leaf: Any, place: Any) -> bool:
    """Return whether a tensor fits into another's memory; of other leaves, whether they are one."""
    if isinstance(leaf, torch.Tensor) and isinstance(place, torch.Tensor):
        return _form(leaf) == _form(place)
    return leaf is place


def _form(tensor: torch.Tensor) -> tuple[object, ...]:
    return type(tensor), tensor.shape, tensor.dtype, tensor.device


def _halt(_: nn.Module, __: Any) -> None:
    raise Halt


def repeats(fresh: Callable[[], nn.Module], blocks: Sequence[str], call: Call) -> bool:
    """True if runs that begin at each of the blocks give, bit for bit, what the whole run gives.

    Costs about two runs of the model.

    Args:
        fresh: Makes a skeleton of the model.
        blocks: Paths of its blocks, in the order of their calls.
        call: One batch.
    """
    # An object among the inputs (a cache) may remember the run.
    is_plain = all(isinstance(leaf, _PLAIN) for leaf in tree_leaves(call))
    if not blocks or not is_plain:
        return False
    with torch.no_grad():
        passed, expected = _digests(fresh(), blocks, call)
        # Blocks that are called in another order, or again, do not follow on one another.
        if [path for path, _ in passed] != list(blocks):
            return False
        kept: Outputs = {}
        try:
            for number, (_, digest) in enumerate(passed):
                following = number + 1
                watch = BlockWatch(fresh(), blocks, number, following)
                kept = watch(copied(call), kept)
                if _digest(kept[following]) != digest:
                    return False
            count = len(blocks)
            end = BlockWatch(fresh(), blocks, count, count + 1)
            _, result = end.run(copied(call), kept)
        except Exception:
            return False  # what lies between the blocks takes no other block's output
    return _digest(result) == expected


def _digests(
    twin: nn.Module, blocks: Sequence[str], call: Call
) -> tuple[list[tuple[str, str]], str]:
    """Run a model as a whole.

    Returns:
        Path and digest of the output of each block, in the order of their calls; the result's
        digest.
    """
    passed: list[tuple[str, str]] = []

    def note(path: str, _: nn.Module, __: Any, output: Any) -> None:
        passed.append((path, _digest(output)))

    for path in blocks:
        block = twin.get_submodule(path)
        block.register_forward_hook(partial(note, path))
    args, kwargs = copied(call)
    result = twin(*args, **kwargs)
    return passed, _digest(result)


def _digest(value: Any) -> str:
    total = hashlib.sha256()
    for tensor in tensors_in(value):
        plain = tensor.detach().cpu().contiguous()
        heading = f"{plain.dtype} {tuple(plain.shape)}\n"
        total.update(heading.encode())
        if plain.numel():
            content = plain.reshape(-1).view(torch.uint8)
            total.update(content.numpy().data)
    return total.hexdigest()
