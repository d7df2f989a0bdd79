"""QLoRA: trainable low-rank updates over a frozen base in few bits.

Dettmers et al. 2023, "QLoRA: Efficient Finetuning of Quantized LLMs", eq. 5: y = x W_q^T + s x A^T
B^T, with W_q in nf4 and double quantization of its scales (scheme ``nf4 group:64`` with
``scale_dtype="uint8"``). Hu et al. 2021, "LoRA", section 4.1: s = alpha / rank, A begins at random
and B at zero.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Sequence

import torch
from torch import nn

from octavo.adapters.pytorch.candidate import TorchCandidate
from octavo.adapters.pytorch.kernels.posts import post
from octavo.adapters.pytorch.modules.shared_copy import (
    copy_settings,
    frozen,
    set_submodule,
)
from octavo.adapters.pytorch.qlayers.weight_only import WeightOnlyLinear
from octavo.core.contract.training import LowRank
from octavo.core.errors import SchemeError, nearest

Tensor = torch.Tensor


class LowRankLinear(nn.Module):
    """A frozen quantized linear layer with a trainable low-rank update.

    An activation function that the base takes in comes after the update.

    Args:
        base: The quantized layer; it becomes the update's own, without its activation function.
        settings: Of the update.
    """

    def __init__(self, base: WeightOnlyLinear, settings: LowRank) -> None:
        super().__init__()
        copy_settings(base, self)
        self.then = base.then
        base.then = ""
        self.base = base
        outputs, inputs = base.weight_codes.rows, base.weight_codes.features
        device = base.weight_codes.codes.device
        self.down = nn.Parameter(torch.empty(settings.rank, inputs, device=device))
        self.up = nn.Parameter(torch.zeros(outputs, settings.rank, device=device))
        # As torch.nn.Linear begins; with the other factor at zero the update begins at zero.
        nn.init.kaiming_uniform_(self.down, a=5**0.5)
        self.gain = settings.alpha / settings.rank
        self.dropout = nn.Dropout(settings.dropout)

    @property
    def weight(self) -> Tensor:
        """The base's weight, as models look at it: its shape, type and device."""
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        """Return the base's output and the update; zero update at the start."""
        low = nn.functional.linear(self.dropout(x).to(self.down.dtype), self.down)
        update = nn.functional.linear(low, self.up) * self.gain
        y: Tensor = self.base(x) + update.to(x.dtype)
        return post(self.then, y)


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
    for path in chosen(found, settings.ops):
        updated = LowRankLinear(found[path], settings)
        # A model that is a single layer is replaced by it.
        if not path:
            return updated
        set_submodule(root, path, updated)
    return root


def chosen(found: Collection[str], ops: Sequence[str] | None) -> list[str]:
    """Return the paths of the layers that get an update, in the order of the model.

    Args:
        found: Paths of all weight-only linear layers.
        ops: Names or patterns; None for all.

    Raises:
        SchemeError: If one matches no layer.
    """
    if ops is None:
        return list(found)
    wanted: set[str] = set()
    for pattern in ops:
        matching = fnmatch.filter(found, pattern)
        if not matching:
            raise SchemeError(
                f"op {pattern!r} is no weight-only linear layer of this candidate"
                f"{nearest(pattern, found)}"
            )
        wanted.update(matching)
    return [path for path in found if path in wanted]


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
