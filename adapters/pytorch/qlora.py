"""Low-rank updates by the name that earlier documentation gave them.

New code asks the session: ``session.training().add_low_rank(candidate, LowRank(rank=8))``.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from octavo.core.contract.training import LowRank

from .candidate import TorchCandidate
from .training.qlora import add_low_rank


def add_adapters(
    candidate: TorchCandidate,
    rank: int = 8,
    *,
    alpha: float = 16.0,
    dropout: float = 0.0,
    ops: Iterable[str] | None = None,
) -> nn.Module:
    """Return a module with trainable low-rank updates over a candidate's weight-only layers.

    Args:
        candidate: The quantized base; not changed.
        rank: Of the updates.
        alpha: Their gain is alpha / rank.
        dropout: Of the updates' inputs while training.
        ops: Names of the ops that get one; None for every weight-only linear layer.

    Raises:
        SchemeError: If there is no such layer.
    """
    named = None if ops is None else tuple(ops)
    return add_low_rank(candidate, LowRank(rank, alpha, dropout, named))
