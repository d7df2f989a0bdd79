"""A small residual network on digits: rounded to 2 bits it loses, and training wins it back."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import nn

from tests import tiny

WIDTH = 32
TWO_BITS: dict[str, Any] = {
    "types": "linear",
    "mode": "weight_only",
    "weight": {"dtype": ["uint2"], "granularity": ["group:32"]},
}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(64, WIDTH)
        self.layers = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


@lru_cache
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Return the digits in a random order: as they come, the last are of other writers."""
    x, y = tiny.digits()
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    return torch.from_numpy(x).float()[order], torch.from_numpy(y).long()[order]


def fit(model: nn.Module, steps: int = 40, rate: float = 2e-3) -> None:
    """Train in place, on the first 1200 digits."""
    x, y = digits()
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for _ in range(steps):
        drawn = torch.randint(0, 1200, (64,))
        loss = nn.functional.cross_entropy(model(x[drawn]), y[drawn])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


@lru_cache
def network() -> nn.Module:
    """Return the trained network, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Residual()
        fit(model, 200, 5e-3)
    return model.eval()


def batches() -> list[torch.Tensor]:
    x, _ = digits()
    return [x[:128], x[128:256]]


def accuracy(model: Any) -> float:
    """Return the share of the other digits that a model knows."""
    x, y = digits()
    with torch.no_grad():
        return float((model(x[1200:]).argmax(1) == y[1200:]).float().mean())
