"""Block reconstruction: how blocks are called, what they are fed with, what is kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from octavo.adapters.pytorch.training.block_calls import block_calls
from octavo.core.contract.adapter import Batch
from octavo.core.contract.training import Reconstruction
from octavo.core.opening.rules import Rule

from .test_training import TWO_BITS, error, prepared

Tensor = torch.Tensor
FEW = Reconstruction(iterations=12, half=False, rows=1)
KEPT = Rule(ops="head", keep="float")


class Mix(nn.Module):
    """A block: two layers around a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)

    def mixed(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(x)))


class Model(nn.Module):
    """Blocks between an input and a head; a subclass says how they are called."""

    kind: type[Mix]

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(self.kind() for _ in range(3))
        self.head = nn.Linear(32, 8)

    def blocks(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x))


class Memory:
    """Remembers what each block was given, as a cache of keys does."""

    def __init__(self) -> None:
        self.seen: dict[int, list[Tensor]] = {}


class Remembering(Mix):
    def forward(self, x: Tensor, *, notebook: Memory | None = None) -> Tensor:
        if notebook is not None:
            notebook.seen.setdefault(id(self), []).append(x)
            x = sum(notebook.seen[id(self)], torch.zeros_like(x))
        return self.mixed(x)


class Recalling(Model):
    kind = Remembering

    def blocks(self, x: Tensor) -> Tensor:
        notebook = Memory()
        for layer in self.layers:
            x = layer(x, notebook=notebook)
        return x


class InNeed(Mix):
    def forward(self, x: Tensor, notebook: Memory) -> Tensor:
        notebook.seen[len(notebook.seen)] = [x]
        return self.mixed(x) * len(notebook.seen)


class Needing(Model):
    kind = InNeed

    def blocks(self, x: Tensor) -> Tensor:
        notebook = Memory()
        for layer in self.layers:
            x = layer(x, notebook)
        return x


class Named(Mix):
    def forward(self, bias: float, hidden: Tensor) -> tuple[Tensor, None]:
        return self.mixed(hidden) + bias, None


class ByName(Model):
    kind = Named

    def blocks(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x, _ = layer(hidden=x, bias=0.5)
        return x


class InPlace(Mix):
    def forward(self, x: Tensor) -> Tensor:
        x += self.down(torch.relu(self.up(x.clone())))
        return x


class Overwriting(Model):
    kind = InPlace

    def blocks(self, x: Tensor) -> Tensor:
        x = x.clone()
        for layer in self.layers:
            x = layer(x)
        return x


class Between(Model):
    """Something lies between its blocks."""

    kind = type("Plain", (Mix,), {"forward": Mix.mixed})

    def blocks(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x) * 0.5
        return x


MODELS: list[Callable[[], Model]] = [Recalling, Needing, ByName, Overwriting, Between]


def data(*lengths: int) -> list[Batch]:
    torch.manual_seed(1)
    return [(torch.randn(4, length, 32),) for length in lengths]


@pytest.mark.parametrize("make", MODELS)
def test_blocks_are_run_as_the_model_calls_them(make: Callable[[], Model]) -> None:
    torch.manual_seed(0)
    model, batches = make().eval(), data(3, 5)
    paths = [f"layers.{i}" for i in range(3)]
    outputs: dict[str, list[Tensor]] = {path: [] for path in paths}

    def note(path: str) -> Any:
        def hook(_: Any, args: Any, result: Any) -> None:
            first = result[0] if isinstance(result, tuple) else result
            outputs[path].append(first.clone())

        return hook

    handles = [
        model.get_submodule(path).register_forward_hook(note(path)) for path in paths
    ]
    with torch.no_grad():
        for batch in batches:
            model(*batch)
    for handle in handles:
        handle.remove()
    for path in paths:
        alone = block_calls(model, [path], [(batch, {}) for batch in batches])[path]
        pairs = zip(alone.calls, alone.hidden, strict=True)
        block = model.get_submodule(path)
        for (call, hidden), expected in zip(pairs, outputs[path], strict=True):
            with torch.no_grad():
                # As often as wanted: nothing that it was given remembers the first time.
                found = [call(block, hidden) for _ in range(2)]
            assert all(torch.allclose(y, expected, atol=1e-6) for y in found)


@pytest.mark.parametrize("make", MODELS)
def test_any_such_model_is_reconstructed(make: Callable[[], Model]) -> None:
    torch.manual_seed(0)
    batches = data(3, 5, 4, 6)
    session, recipe, start = prepared(make().eval(), batches, TWO_BITS, KEPT)
    learned = session.training().reconstruct(start, batches, FEW)
    assert error(session, recipe, learned, batches) < 0.9 * error(
        session, recipe, start, batches
    )
