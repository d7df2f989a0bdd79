"""Activation functions that a product applies to its own result."""

from __future__ import annotations

import torch

Tensor = torch.Tensor

POSTS = {
    "": ("none", ""),
    "relu": ("relu", ""),
    "gelu": ("gelu", "none"),
    "gelu_tanh": ("gelu", "tanh"),
    "silu": ("swish", ""),
}
"""Activation functions that the linear kernel applies to its result: name -> the kernel's name and variant."""


def post(name: str, x: Tensor) -> Tensor:
    """Apply an activation function of :data:`POSTS`."""
    if name == "relu":
        return torch.relu(x)
    if name == "silu":
        return torch.nn.functional.silu(x)
    return (
        torch.nn.functional.gelu(x, approximate="tanh" if name == "gelu_tanh" else "none")
        if name
        else x
    )
