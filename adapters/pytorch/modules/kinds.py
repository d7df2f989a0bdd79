"""Which of the layers that octavo knows a module is, by its class."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
RECURRENT_KINDS: dict[type[nn.Module], str] = {
    nn.LSTM: "lstm",
    nn.GRU: "gru",
    nn.RNN: "rnn",
}
"""Recurrent layer -> its neutral op type."""


def is_transposed_linear(module: nn.Module) -> bool:
    """True for transformers' ``Conv1D``, a linear layer whose weight is stored as (inputs,
    outputs)."""
    return any(
        c.__name__ == "Conv1D" and c.__module__ == "transformers.pytorch_utils"
        for c in type(module).__mro__
    )


def kind_of(module: nn.Module) -> str:
    """Return the neutral op type of a module with a weight that may be quantized; empty for any
    other."""
    # Where a stand-in is in place of the weight, layers of their own hold it.
    if "weight" in module.__dict__:
        return ""
    # torch's functions take a vector for a matrix of one row: then a layer's channels have no axis.
    if (
        isinstance(weight := getattr(module, "weight", None), torch.Tensor)
        and weight.ndim < 2
    ):
        return ""
    # Subclasses may compute something else in their forward (parametrized layers, low-rank
    # adapters).
    cls = type(module)
    if cls is nn.Linear or is_transposed_linear(module):
        return "linear"
    if cls in CONVS:
        return "conv"
    if cls in TRANSPOSED:
        return "conv_transpose"
    if cls in (nn.Embedding, nn.EmbeddingBag) or is_table(module):
        return "embedding"
    return RECURRENT_KINDS.get(cls, "")


def is_table(module: nn.Module) -> bool:
    """True for a subclass of a table with a forward of its own: it scales rows, shifts ids, or
    makes ids itself."""
    return isinstance(module, nn.Embedding) and type(module) is not nn.Embedding


def weight_names(module: nn.Module) -> tuple[str, ...]:
    """Return a recurrent module's weights: input, recurrent and, where it has one, projection
    matrix of each layer and direction."""
    return tuple(name for name in _flat_names(module) if name.startswith("weight_"))


def bias_names(module: nn.Module) -> tuple[str, ...]:
    """Return a recurrent module's biases, layer by layer."""
    return tuple(name for name in _flat_names(module) if name.startswith("bias_"))


def _flat_names(module: nn.Module) -> Iterator[str]:
    assert isinstance(module, nn.RNNBase)
    for names in module._all_weights:
        yield from names
