"""Activation functions that a product applies to its own result."""

from __future__ import annotations

import torch
from torch.nn import functional as F

Tensor = torch.Tensor

POSTS = {
    "": ("none", ""),
    "relu": ("relu", ""),
    "gelu": ("gelu", "none"),
    "gelu_tanh": ("gelu", "tanh"),
    "silu": ("swish", ""),
}
"""Those that oneDNN's linear kernel knows: name -> the kernel's name and variant."""


def post(name: str, x: Tensor) -> Tensor:
    """Apply an activation function of :data:`POSTS`."""
    if not name:
        return x
    if name == "relu":
        return torch.relu(x)
    if name == "silu":
        return F.silu(x)
    return F.gelu(x, approximate="tanh" if name == "gelu_tanh" else "none")
