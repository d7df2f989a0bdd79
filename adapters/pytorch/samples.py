"""Modules of one layer, of the size that models have: what is timed when somebody asks how fast
schemes are."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

Tensor = torch.Tensor

_LAYERS: Mapping[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "linear": lambda: (nn.Linear(512, 512), torch.randn(64, 512)),
    "conv": lambda: (nn.Conv2d(64, 64, 3, padding=1), torch.randn(1, 64, 28, 28)),
    "conv_transpose": lambda: (
        nn.ConvTranspose2d(64, 64, 2, stride=2),
        torch.randn(1, 64, 14, 14),
    ),
    "embedding": lambda: (nn.Embedding(4096, 256), torch.randint(0, 4096, (8, 64))),
    "lstm": lambda: (nn.LSTM(128, 128), torch.randn(24, 1, 128)),
    "gru": lambda: (nn.GRU(128, 128), torch.randn(24, 1, 128)),
}


def sample(kind: str) -> tuple[nn.Module, tuple[Tensor, ...]] | None:
    """Return a module with one layer of a type and a batch for it; None for types that
    have none."""
    if kind not in _LAYERS:
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer, x = _LAYERS[kind]()
    return nn.Sequential(layer).eval(), (x,)
