"""Running many candidates on the same few batches: what comes before the first changed layer is recalled, not computed again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from octavo.adapters.pytorch.apply.input_maps import install
from octavo.adapters.pytorch.candidate import TorchCandidate
from octavo.adapters.pytorch.capture.blocks import blocks_of
from octavo.adapters.pytorch.capture.capture import Capture
from octavo.adapters.pytorch.modules.shared_copy import copy_settings, set_submodule, skeleton
from octavo.adapters.pytorch.run.batches import Call, to_arrays
from octavo.core.contract.adapter import Candidate
from octavo.core.contract.recall import Room


class Recall(nn.Module):
    """Returns what a module put out for one batch, whatever it is called with.

    Args:
        module: The module in whose place it stands; models look at numbers and names that their blocks carry.
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

    The repeated blocks of the model, and the layers outside of them, are recalled up to the first one that a candidate
    changes. The float model is run once for each batch, when this is made. Where recalling all of them does not give the
    float outputs again, bit for bit, nothing is recalled.

    Args:
        capture: The float model.
        calls: The batches.
    """

    def __init__(self, capture: Capture, calls: Sequence[Call]) -> None:
        self._layers = {n: layer.path for n, layer in capture.layers.items()}
        self._calls = calls
        blocks = blocks_of(capture.root, capture.layers.values())
        outside = [
            p for p in self._layers.values() if p and not any(p.startswith(f"{b}.") for b in blocks)
        ]
        root = skeleton(capture.root)
        install(root, capture.layers, capture.factors)
        self._types = {p: type(root.get_submodule(p)) for p in (*blocks, *outside)}
        self._outputs, self._order, self._known, expected = self._record(root)
        if self._known and not _same(
            expected, _run(self._recalled(root, self._order[: self._known], 0), calls[0])
        ):
            self._known = 0

    def _record(
        self, root: nn.Module
    ) -> tuple[list[dict[str, Any]], list[str], int, tuple[np.ndarray, ...]]:
        """Return the results for each batch, the places in the order of their first, how many are known, and the first outputs."""
        remembered: list[dict[str, Any]] = []
        order: list[str] = []
        often: set[str] = set()
        first: tuple[np.ndarray, ...] = ()
        for number, call in enumerate(self._calls):
            seen: dict[str, Any] = {}
            hooks = [
                root.get_submodule(p).register_forward_hook(_keep(p, seen, often))
                for p in self._types
            ]
            outputs = _run(root, call)
            for hook in hooks:
                hook.remove()
            if not number:
                order, first = list(seen), outputs
            remembered.append(seen)
        known, room = 0, Room()
        for path in order:
            size = sum(bytes_of(seen.get(path)) for seen in remembered)
            everywhere = all(path in seen for seen in remembered)
            # A place that is called again later has no one result.
            if not room.take(size) or path in often or not everywhere:
                break
            known += 1
        return [{p: seen[p] for p in order[:known]} for seen in remembered], order, known, first

    def __call__(self, candidate: Candidate) -> Iterator[tuple[np.ndarray, ...]]:
        """Yield the candidate's outputs for each batch."""
        assert isinstance(candidate, TorchCandidate)
        same = self.unchanged(candidate)
        for number, call in enumerate(self._calls):
            yield _run(self._recalled(candidate.module, same, number), call)

    def unchanged(self, candidate: TorchCandidate) -> list[str]:
        """Return the places that come before everything that the candidate changes, and whose results are remembered."""
        changed = [self._layers[n] for n in candidate.ledger]
        first = [
            i
            for i, place in enumerate(self._order)
            for p in changed
            if p == place or p.startswith(f"{place}.")
        ]
        return self._order[: min([self._known, *first])] if first else []

    def _recalled(self, module: nn.Module, paths: Sequence[str], number: int) -> nn.Module:
        twin = skeleton(module)
        for path in paths:
            if type(twin.get_submodule(path)) is self._types[path]:
                set_submodule(
                    twin, path, Recall(twin.get_submodule(path), self._outputs[number][path])
                )
        return twin


def _keep(path: str, seen: dict[str, Any], often: set[str]) -> Any:
    def hook(_: nn.Module, __: Any, output: Any) -> None:
        if path in seen:
            often.add(path)
        seen[path] = copied(output)

    return hook


def _run(module: nn.Module, call: Call) -> tuple[np.ndarray, ...]:
    with torch.no_grad():
        return to_arrays(module(*call[0], **call[1]))


def copied(output: Any) -> Any:
    """Return nested tensors cloned."""
    return tree_map(lambda v: v.clone() if isinstance(v, torch.Tensor) else v, output)


def bytes_of(output: Any) -> int:
    """Return the bytes of nested tensors."""
    return sum(
        t.numel() * t.element_size() for t in tree_leaves(output) if isinstance(t, torch.Tensor)
    )


def _same(some: tuple[np.ndarray, ...], other: tuple[np.ndarray, ...]) -> bool:
    return len(some) == len(other) and all(
        np.array_equal(a, b, equal_nan=True) for a, b in zip(some, other, strict=True)
    )
