"""The weights of a module that its forward really reads: found by watching what operators are
given."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from octavo.adapters.pytorch.modules.shared_copy import aliases
from octavo.adapters.pytorch.run.batches import tensors_in
from octavo.core.values.coverage import counts
from octavo.core.values.graph import UNREACHED, HeldWeight

from .mentioned_tensors import is_referred_to

Tensor = torch.Tensor
Extent = tuple[int, int]
"""First address of some memory, and the one behind its last."""


class Reads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes where in memory the tensors lie that operators read while it is active.

    A parameter is used if an operator was given it, a part of it, or a view of its memory: so a
    stand-in that holds slices of a parameter, or a layer that a graph calls in place of a
    function, counts for what it stands for.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._read: set[Extent] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        named = kwargs or {}
        for tensor in tensors_in((args, named)):
            extent = memory_of(tensor)
            if extent is not None:
                self._read.add(extent)
        return func(*args, **named)

    def within(self, tensors: Iterable[Tensor]) -> list[bool]:
        """Return of each tensor whether anything in its memory was read."""
        return _overlaps(self._read, tensors)


def memory_of(tensor: Tensor) -> Extent | None:
    """Return the first address of a tensor and the one behind its last; None where it has no memory
    of its own."""
    if tensor.is_meta or tensor.layout is not torch.strided or not tensor.numel():
        return None
    try:
        start = tensor.data_ptr()
    except RuntimeError:  # fake and functional tensors, in models that are compiled
        return None
    axes = zip(tensor.shape, tensor.stride(), strict=True)
    last = sum((size - 1) * stride for size, stride in axes)
    end = start + (last + 1) * tensor.element_size()
    return start, end


def _overlaps(extents: Collection[Extent], tensors: Iterable[Tensor]) -> list[bool]:
    """Return of each tensor whether its memory and one of the extents have a byte in common."""
    merged = _merged(extents)
    starts = [start for start, _ in merged]
    found = []
    for tensor in tensors:
        own = memory_of(tensor)
        if own is None:
            found.append(False)
            continue
        start, end = own
        # The last extent that begins before the tensor ends.
        before = bisect_right(starts, end - 1) - 1
        reaches_in = before >= 0 and merged[before][1] > start
        found.append(reaches_in)
    return found


def _merged(extents: Collection[Extent]) -> list[Extent]:
    """Return extents in order, those that overlap as one."""
    merged: list[Extent] = []
    for start, end in sorted(extents):
        if merged and start < merged[-1][1]:
            first, last = merged.pop()
            merged.append((first, max(last, end)))
        else:
            merged.append((start, end))
    return merged


def census(
    given: nn.Module, reads: Reads | None, *, branches: bool = False
) -> tuple[HeldWeight, ...]:
    """Return the parameters and buffers of two or more dimensions that the forward of a module
    uses, each once.

    Args:
        given: The module as it was given, without stand-ins.
        reads: What was read in runs of an example; None where there was none: then all of them
            count.
        branches: The runs may have taken some branches of several: what they did not read counts
            too, where the code of the model's classes speaks of it.
    """
    held = {name: t for name, t in _tensors(given) if counts(t.shape, _dtype(t))}
    used = [True] * len(held)
    if reads is not None:
        used = reads.within(held.values())
    buffers = {name for name, _ in given.named_buffers()}
    found = []
    for (name, tensor), is_used in zip(held.items(), used, strict=True):
        if is_used:
            reason = _why_no_layer(given, name, buffers)
        elif branches and is_referred_to(given, name):
            reason = UNREACHED
        else:
            continue
        shape = tuple(tensor.shape)
        found.append(HeldWeight(name, shape, _dtype(tensor), reason))
    return tuple(found)


def unclaimed(
    found: Iterable[HeldWeight],
    given: nn.Module,
    root: nn.Module,
    claimed: Collection[str],
) -> tuple[HeldWeight, ...]:
    """Return those weights of a census whose memory no layer's weight shares.

    Args:
        found: From :func:`census`.
        given: The module that was counted.
        root: The skeleton that the layers belong to, stand-ins included.
        claimed: Names of the layers' weights in ``root``.
    """
    first = aliases(root)
    tensors = dict(_tensors(root))
    extents = set()
    for name in claimed:
        tensor = tensors.get(first.get(name, name))
        extent = memory_of(tensor) if tensor is not None else None
        if extent is not None:
            extents.add(extent)
    counted = tuple(found)
    own = dict(_tensors(given))
    taken = _overlaps(extents, [own[weight.name] for weight in counted])
    pairs = zip(counted, taken, strict=True)
    return tuple(weight for weight, is_taken in pairs if not is_taken)


def _tensors(root: nn.Module) -> Iterable[tuple[str, Tensor]]:
    yield from root.named_parameters()
    yield from root.named_buffers()


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _why_no_layer(root: nn.Module, name: str, buffers: Collection[str]) -> str:
    """Return why no layer holds a weight, for those that no layer turns out to hold."""
    path, _, leaf = name.rpartition(".")
    is_bias = leaf == "bias" or leaf.startswith("bias_")
    if is_bias or leaf.endswith("_bias"):
        return "a bias stays float"
    owner = type(root.get_submodule(path)).__name__
    kind = "a buffer" if name in buffers else "a parameter"
    return f"{kind} that {owner} reads itself, in no layer that octavo knows"
