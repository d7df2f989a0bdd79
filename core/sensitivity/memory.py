"""Where scores outlive the process that found them, so that a resumed run starts from them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

_CHEAP = ("weight_error ", "hessian ")
"""How keys begin whose scores are found anew in less time than it takes to keep them."""


class Memory:
    """Keeps nothing: the scores of a service by itself live as long as it does."""

    def recall(self, key: str) -> float | None:
        """Return a score that was learnt before; None for one that was not."""
        return None

    def learn(self, scores: Mapping[str, float]) -> None:
        """Take in scores that were found."""


def worth_keeping(scores: Mapping[str, float]) -> dict[str, float | None]:
    """Return the scores that take long to find, by short keys, JSON-ready: None is infinite."""
    found: dict[str, float | None] = {}
    for key, loss in scores.items():
        if not key.startswith(_CHEAP):
            found[short_key(key)] = loss if loss < float("inf") else None
    return found


def short_key(key: str) -> str:
    """Return a digest of a key, which spells whole schemes out: stores bound a row's length."""
    return hashlib.sha256(key.encode()).hexdigest()[:16]
