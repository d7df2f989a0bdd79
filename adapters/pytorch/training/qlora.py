"""QLoRA: trainable low-rank updates over a frozen base in few bits.

Dettmers et al. 2023, "QLoRA: Efficient Finetuning of Quantized LLMs", eq. 5: y = x W_q^T + s x A^T
B^T, with W_q in nf4 and double quantization of its scales (scheme ``nf4 group:64`` with
``scale_dtype="uint8"``).
"""

from __future__ import annotations

import torch
from torch import nn

from octavo.adapters.pytorch.candidate import TorchCandidate
from octavo.adapters.pytorch.modules.shared_copy import frozen, set_submodule
from octavo.adapters.pytorch.qlayers.weight_only import WeightOnlyLinear
from octavo.core.contract.training import LowRank
from octavo.core.errors import SchemeError, nearest

Tensor = torch.Tensor


class LowRankLinear(nn.Module):
    """A frozen quantized linear layer with a trainable low-rank update.

    Args:
        base: The quantized layer.
        settings: Of the update.
    """

    def __init__(self, base: WeightOnlyLinear, settings: LowRank) -> None:
        super().__init__()
        self.base = base
        outputs, inputs = base.weight_codes.rows, base.weight_codes.features
        self.down = nn.Parameter(torch.empty(settings.rank, inputs))
        self.up = nn.Parameter(torch.zeros(outputs, settings.rank))
        # As torch.nn.Linear begins; with the other factor at zero the update begins at zero.
        nn.init.kaiming_uniform_(self.down, a=5**0.5)
        self.gain = settings.alpha / settings.rank
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return the base's output and the update; zero update at the start."""
        low = nn.functional.linear(self.dropout(x).to(self.down.dtype), self.down)
        update = nn.functional.linear(low, self.up) * self.gain
        y: Tensor = self.base(x) + update.to(x.dtype)
        return y


def add_low_rank(candidate: TorchCandidate, settings: LowRank) -> nn.Module:
    """Return the candidate's module with trainable updates on its weight-only linear layers.

    Everything else is frozen.

    Args:
        candidate: A candidate with weight-only linear layers; not changed, and its tensors are
            shared.
        settings: Rank and gain of the updates, and which ops get one.

    Raises:
        SchemeError: If there is no such layer.
    """
    root, found = frozen_base(candidate)
    chosen = found if settings.ops is None else settings.ops
    for path in chosen:
        if path not in found:
            raise SchemeError(
                f"op {path!r} is no weight-only linear layer of this candidate"
                f"{nearest(path, found)}"
            )
    for path in chosen:
        set_submodule(root, path, LowRankLinear(found[path], settings))
    return root


def frozen_base(
    candidate: TorchCandidate,
) -> tuple[nn.Module, dict[str, WeightOnlyLinear]]:
    """Return what updates go over.

    Returns:
        A twin of the candidate's module with frozen views of its parameters, and its weight-only
        linear layers by path.

    Raises:
        SchemeError: If there is no such layer.
    """
    root = frozen(candidate.module)
    modules = root.named_modules()
    found = {path: m for path, m in modules if isinstance(m, WeightOnlyLinear)}
    if not found:
        raise SchemeError(
            "the candidate has no weight-only linear layer; quantize it with a weight_only scheme "
            "such as nf4 group:64 first"
        )
    return root, found
