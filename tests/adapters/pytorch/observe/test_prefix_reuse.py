"""Candidates that start at their first changed layer give what they give from the beginning."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from octavo.adapters.pytorch.observe.prefix_reuse import Recall
from octavo.core.contract.plugins import PluginHost
from octavo.core.opening.spaces import build_space
from octavo.core.quantizing.realize import Realizer
from octavo.core.values.recipe import Recipe
from tests.helpers import as_opened, torch_session


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = (
            nn.LayerNorm(16),
            nn.Linear(16, 32),
            nn.Linear(32, 16),
        )

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        return (x + self.down(torch.relu_(self.up(self.norm(x)))),)


class Stack(nn.Module):
    """Not traceable: the number of blocks is asked for at run time. ``twice`` runs all blocks
    again."""

    def __init__(self, *, twice: bool = False) -> None:
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.layers = nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(16, 4)
        self.twice = twice

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for _ in range(2 if self.twice else 1):
            for layer in self.layers:
                (x,) = layer(x) if float(x.abs().sum()) >= 0 else (x,)
        return self.head(x)


def chain() -> nn.Module:
    return nn.Sequential(
        nn.Linear(8, 16),
        nn.ReLU(inplace=True),
        nn.Linear(16, 16),
        nn.ReLU(inplace=True),
        nn.Linear(16, 4),
    )


CASES = {"blocks": Stack, "graph": chain, "twice": lambda: Stack(twice=True)}


@pytest.mark.parametrize("name", CASES)
def test_outputs_are_the_same_and_the_prefix_is_not_run(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = CASES[name]().eval()
    batches = [(torch.randn(6, 8),) for _ in range(2)]
    session = torch_session(model, batches[0])
    opened = as_opened(session)
    space = build_space(opened)
    realizer = Realizer(opened, space, PluginHost(third_party=False))
    realizer.calibrate(batches)
    runner = session.runner(batches)
    recalled: list[int] = []
    inner = Recall.forward
    monkeypatch.setattr(
        Recall,
        "forward",
        lambda *given, **named: recalled.append(1) or inner(*given, **named),
    )
    counts = []
    for unit in space.tunable:
        candidate = realizer.candidate(
            Recipe(dict.fromkeys(unit.ops, unit.choices[0]), (), "torch")
        )
        recalled.clear()
        for found, batch in zip(runner(candidate), batches, strict=True):
            np.testing.assert_array_equal(found[0], candidate.run(batch)[0])
        counts.append(len(recalled) // len(batches))
    # Blocks and the layers outside of them that come before; a block that runs twice has no one
    # result.
    assert (
        counts
        == {
            "blocks": [0, 1, 1, 2, 2, 3, 3, 4],
            "graph": [0, 1, 2],
            "twice": [0, 1, 1, 1, 1, 1, 1, 1],
        }[name]
    )
    everything = realizer.candidate(space.recipe(space.first()))
    np.testing.assert_array_equal(
        next(runner(everything))[0], everything.run(batches[0])[0]
    )
