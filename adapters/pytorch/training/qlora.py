"""QLoRA: trainable low-rank adapters over a frozen base in few bits.

Dettmers et al. 2023, "QLoRA: Efficient Finetuning of Quantized LLMs", eq. 5: y = x W_q^T + s x A^T B^T, with W_q in nf4 and double
quantization of its scales (scheme ``nf4 group:64`` with ``scale_dtype="uint8"``).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from octavo.adapters.pytorch.candidate import TorchCandidate
from octavo.adapters.pytorch.capture.shared_copy import frozen, set_submodule
from octavo.adapters.pytorch.qlayers.weight_only import WeightOnlyLinear
from octavo.core.errors import SchemeError, nearest

Tensor = torch.Tensor


class LowRank(nn.Module):
    """A frozen quantized linear layer with a trainable low-rank update.

    Args:
        base: The quantized layer.
        rank: Rank of the update.
        alpha: The update is multiplied by alpha / rank.
        dropout: Of the update's input while training.
    """

    def __init__(self, base: WeightOnlyLinear, rank: int, alpha: float, dropout: float) -> None:
        super().__init__()
        self.base = base
        outputs, inputs = base.weight_codes.rows, base.weight_codes.features
        self.down = nn.Parameter(torch.empty(rank, inputs))
        self.up = nn.Parameter(torch.zeros(outputs, rank))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)
        self.gain = alpha / rank
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return the base's output and the update; zero update at the start."""
        low = nn.functional.linear(self.dropout(x).to(self.down.dtype), self.down)
        y: Tensor = self.base(x) + (nn.functional.linear(low, self.up) * self.gain).to(x.dtype)
        return y


def add_adapters(
    candidate: TorchCandidate,
    rank: int = 8,
    *,
    alpha: float = 16.0,
    dropout: float = 0.0,
    ops: Iterable[str] | None = None,
) -> nn.Module:
    """Return the candidate's module with trainable adapters on its weight-only linear layers; everything else is frozen.

    Args:
        candidate: A candidate with weight-only linear layers; not changed, and its tensors are shared.
        rank: Of the updates.
        alpha: Their gain is alpha / rank.
        dropout: Of the updates' inputs.
        ops: Names of the ops that get one; None for all.

    Raises:
        SchemeError: If there is no such layer.
    """
    root, found = frozen_base(candidate)
    chosen = list(found) if ops is None else list(ops)
    for path in chosen:
        if path not in found:
            raise SchemeError(
                f"op {path!r} is no weight-only linear layer of this candidate{nearest(path, found)}"
            )
    for path in chosen:
        set_submodule(root, path, LowRank(found[path], rank, alpha, dropout))
    return root


def frozen_base(candidate: TorchCandidate) -> tuple[nn.Module, dict[str, WeightOnlyLinear]]:
    """Return a twin of the candidate's module with frozen views of its parameters, and its weight-only linear layers by path.

    Raises:
        SchemeError: If there is no such layer.
    """
    root = frozen(candidate.module)
    found = {p: m for p, m in root.named_modules() if isinstance(m, WeightOnlyLinear)}
    if not found:
        raise SchemeError(
            "the candidate has no weight-only linear layer; quantize it with a weight_only scheme such as nf4 group:64 first"
        )
    return root, found
