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

_PLAIN = (torch.Tensor, bool, int, float, str, type(None))


class BlockWatch(Watch):
    """A run of a module tree from one of its repeated blocks on.

    The modules around the blocks run each time; the blocks before the start give back what the last of them put out. Kept are
    the input and the output of the last block that runs: values of one block may be asked for on several occasions.

    Args:
        twin: A skeleton of the model, with the hooks that observe.
        blocks: Paths of its blocks, in the order of their calls.
        start: Number of the first block that is run.
        stop: Number of the block before which the run ends; more than there are: it goes on to the model's end.
        beyond: Whether something is asked for between the block before ``stop`` and that one.
    """

    def __init__(
        self, twin: nn.Module, blocks: Sequence[str], start: int, stop: int, *, beyond: bool = False
    ) -> None:
        self._twin, self._start = twin, start
        self._recalls = [Recall(twin.get_submodule(path), None) for path in blocks[:start]]
        for path, recall in zip(blocks[:start], self._recalls, strict=True):
            set_submodule(twin, path, recall)
        self._reached: dict[int, Any] = {}
        if stop > len(blocks):
            return
        for place in range(max(start, stop - 2) + 1, stop + 1):
            hook = partial(self._keep, place, place == stop and not beyond)
            twin.get_submodule(blocks[place - 1]).register_forward_hook(hook)
        if stop < len(blocks):
            twin.get_submodule(blocks[stop]).register_forward_pre_hook(_halt)

    def _keep(self, place: int, ends: bool, _: nn.Module, __: Any, output: Any) -> None:
        self._reached[place] = output if ends else copied(output)  # what follows may work in place
        if ends:
            raise Halt

    def __call__(self, call: Call, kept: Mapping[int, Any] | None = None) -> Mapping[int, Any]:
        """Return block number -> what the block before it put out."""
        return self.run(call, kept or {})[0]

    def run(self, call: Call, kept: Mapping[int, Any]) -> tuple[Mapping[int, Any], Any]:
        """Return what :meth:`__call__` does, and the model's result where the run went that far."""
        self._reached = {self._start: kept[self._start]} if self._start else {}
        for recall in self._recalls:
            recall.output = kept[self._start]
        result = None
        try:
            result = self._twin(*call[0], **call[1])
        except Halt:
            pass
        finally:
            reached, self._reached = self._reached, {}
            for recall in self._recalls:
                recall.output = None
        # What was made in the middle of a run pins all memory below it: it moves, and to where the last block's was.
        spare = [output for place, output in kept.items() if place != self._start]
        for place in reached:
            if place != self._start:
                reached[place] = _copied_into(spare.pop() if spare else None, reached[place])
        return reached, result


def _copied_into(old: Any, output: Any) -> Any:
    """Return a copy, in the memory of ``old`` where that is built and shaped alike."""
    (new, form), (there, other) = tree_flatten(output), tree_flatten(old)
    alike = form == other and all(
        (type(a), a.shape, a.dtype, a.device) == (type(b), b.shape, b.dtype, b.device)
        if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)
        else a is b
        for a, b in zip(new, there, strict=True)
    )
    if not alike:
        return copied(output)
    for a, b in zip(new, there, strict=True):
        if isinstance(a, torch.Tensor):
            b.copy_(a)
    return old


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
    if not blocks or not all(isinstance(leaf, _PLAIN) for leaf in tree_leaves(call)):
        return False
    whole: list[tuple[str, str]] = []
    twin = fresh()
    for path in blocks:
        twin.get_submodule(path).register_forward_hook(
            lambda _, __, output, path=path: whole.append((path, _digest(output)))
        )
    with torch.no_grad():
        args, kwargs = copied(call)
        expected = _digest(twin(*args, **kwargs))
        if [path for path, _ in whole] != list(blocks):
            return False
        kept: Mapping[int, Any] = {}
        try:
            for number, (_, digest) in enumerate(whole):
                kept = BlockWatch(fresh(), blocks, number, number + 1)(copied(call), kept)
                if _digest(kept[number + 1]) != digest:
                    return False
            result = BlockWatch(fresh(), blocks, len(blocks), len(blocks) + 1).run(
                copied(call), kept
            )[1]
        except Exception:
            return False  # what lies between the blocks takes no other block's output
    return _digest(result) == expected


def _digest(value: Any) -> str:
    total = hashlib.sha256()
    for tensor in tensors_in(value):
        plain = tensor.detach().cpu().contiguous()
        total.update(f"{plain.dtype} {tuple(plain.shape)}\n".encode())
        if plain.numel():
            total.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
