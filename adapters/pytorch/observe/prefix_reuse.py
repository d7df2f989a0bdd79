"""Running many candidates on the same few batches.

What comes before the first changed layer is recalled, not computed again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from octavo.adapters.pytorch.apply.input_maps import install
from octavo.adapters.pytorch.candidate import TorchCandidate
from octavo.adapters.pytorch.capture.blocks import blocks_of
from octavo.adapters.pytorch.capture.capture import Capture
from octavo.adapters.pytorch.modules.shared_copy import (
    copy_settings,
    set_submodule,
    skeleton,
)
from octavo.adapters.pytorch.run.batches import Call, to_arrays
from octavo.core.contract.adapter import Candidate
from octavo.core.contract.recall import Room

Arrays = tuple[np.ndarray, ...]


class Recall(nn.Module):
    """Returns what a module put out for one batch, whatever it is called with.

    Args:
        module: The module in whose place it stands; models look at numbers and names that their
            blocks carry.
        output: What it put out.
    """

    def __init__(self, module: nn.Module, output: Any) -> None:
        super().__init__()
        copy_settings(module, self)
        self.output = output

    def forward(self, *_: Any, **__: Any) -> Any:
        """Return a copy: what follows may work in place."""
        return copied(self.output)


class Reuse:
    """Runs candidates of one session.

    The repeated blocks of the model, and the layers outside of them, are recalled up to the first
    one that a candidate changes. The float model is run once for each batch, when this is made.
    Where recalling all of them does not give the float outputs again, bit for bit, nothing is
    recalled.

    Args:
        capture: The float model.
        calls: The batches.
    """

    def __init__(self, capture: Capture, calls: Sequence[Call]) -> None:
        self._layers = {name: layer.path for name, layer in capture.layers.items()}
        self._calls = calls
        root = skeleton(capture.root)
        install(root, capture.layers, capture.factors)
        self._types: dict[str, type[nn.Module]] = {}
        for path in _places(capture):
            self._types[path] = type(root.get_submodule(path))
        record = _recorded(root, self._types, calls)
        self._order = record.order
        self._known = record.known()
        recalled = self._order[: self._known]
        self._outputs: list[dict[str, Any]] = []
        for seen in record.outputs:
            kept = {place: seen[place] for place in recalled}
            self._outputs.append(kept)
        if recalled:
            again = _run(self._recalled(root, recalled, 0), calls[0])
            if not _same(record.first, again):
                self._known = 0

    def __call__(self, candidate: Candidate) -> Iterator[Arrays]:
        """Yield the candidate's outputs for each batch."""
        assert isinstance(candidate, TorchCandidate)
        same = self.unchanged(candidate)
        for number, call in enumerate(self._calls):
            twin = self._recalled(candidate.module, same, number)
            yield _run(twin, call)

    def unchanged(self, candidate: TorchCandidate) -> list[str]:
        """Return the remembered places that come before everything that the candidate changes."""
        changed = [self._layers[name] for name in candidate.ledger]
        for first, place in enumerate(self._order):
            if _holds_any(place, changed):
                return self._order[: min(self._known, first)]
        # What lies in no place may come anywhere.
        return []

    def _recalled(
        self, module: nn.Module, places: Sequence[str], number: int
    ) -> nn.Module:
        """Return a twin of a module in which places give back what they put out for one batch."""
        twin = skeleton(module)
        for place in places:
            own = twin.get_submodule(place)
            if type(own) is self._types[place]:
                output = self._outputs[number][place]
                set_submodule(twin, place, Recall(own, output))
        return twin


def _places(capture: Capture) -> list[str]:
    """Return what may be recalled: the repeated blocks, and the layers outside of them."""
    blocks = blocks_of(capture.root, capture.layers.values())
    layers = [layer.path for layer in capture.layers.values() if layer.path]
    inside = tuple(f"{block}." for block in blocks)
    outside = [path for path in layers if not path.startswith(inside)]
    return [*blocks, *outside]


def _holds_any(place: str, paths: Iterable[str]) -> bool:
    return any(path == place or path.startswith(f"{place}.") for path in paths)


@dataclass(frozen=True, slots=True)
class _Record:
    """What the places of the float model put out.

    Attributes:
        outputs: For each batch, place -> result.
        order: The places, as the first batch came by them.
        repeated: Those that a batch came by more than once.
        first: The model's outputs for the first batch.
    """

    outputs: list[dict[str, Any]]
    order: list[str]
    repeated: set[str]
    first: Arrays

    def known(self) -> int:
        """Return how many places from the first on may be recalled.

        Each must have one result for each batch, and there must be room for them.
        """
        room = Room()
        for count, place in enumerate(self.order):
            size = sum(bytes_of(seen.get(place)) for seen in self.outputs)
            everywhere = all(place in seen for seen in self.outputs)
            # A place that is called again later has no one result.
            if not room.take(size) or place in self.repeated or not everywhere:
                return count
        return len(self.order)


def _recorded(root: nn.Module, places: Iterable[str], calls: Sequence[Call]) -> _Record:
    """Run a model over all batches."""
    remembered: list[dict[str, Any]] = []
    repeated: set[str] = set()
    order: list[str] = []
    first: Arrays = ()
    for call in calls:
        seen: dict[str, Any] = {}
        hooks = []
        for place in places:
            keep = _keep(place, seen, repeated)
            module = root.get_submodule(place)
            hooks.append(module.register_forward_hook(keep))
        outputs = _run(root, call)
        for hook in hooks:
            hook.remove()
        if not remembered:
            order = list(seen)
            first = outputs
        remembered.append(seen)
    return _Record(remembered, order, repeated, first)


def _keep(place: str, seen: dict[str, Any], repeated: set[str]) -> Any:
    def hook(_: nn.Module, __: Any, output: Any) -> None:
        if place in seen:
            repeated.add(place)
        seen[place] = copied(output)

    return hook


def _run(module: nn.Module, call: Call) -> Arrays:
    args, kwargs = call
    with torch.no_grad():
        return to_arrays(module(*args, **kwargs))


def copied(output: Any) -> Any:
    """Return nested tensors cloned."""
    return tree_map(_cloned, output)


def _cloned(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, torch.Tensor) else leaf


def bytes_of(output: Any) -> int:
    """Return the bytes of nested tensors."""
    tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _same(some: Arrays, other: Arrays) -> bool:
    if len(some) != len(other):
        return False
    pairs = zip(some, other, strict=True)
    return all(np.array_equal(a, b, equal_nan=True) for a, b in pairs)
