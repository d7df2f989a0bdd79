"""Scores by key: what is known is never found out again, and what fails is told once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from .memory import Memory
from .watching import Watched


class ScoreBook:
    """Finds scores out, and keeps them.

    Args:
        memory: Knows what an earlier process of the same run found, and keeps what is found.
        note: Told in one line what could not be found out.

    Attributes:
        scores: Key -> loss >= 0; infinite where a recipe cannot be carried out.
        failures: What probes raised, by key.
    """

    def __init__(self, memory: Memory, note: Callable[[str], None]) -> None:
        self.scores: dict[str, float] = {}
        self.failures: dict[str, str] = {}
        self._memory = memory
        self._note = note

    def recall(self, keys: Iterable[str]) -> None:
        """Take in what an earlier process of the same run has found."""
        for key in keys:
            if key not in self.scores:
                loss = self._memory.recall(key)
                if loss is not None:
                    self.scores[key] = loss

    def is_settled(self, key: str) -> bool:
        """Return whether a score is known, or known to fail."""
        return key in self.scores or key in self.failures

    def find_out(
        self, wanted: Mapping[str, Callable[[], float]], watched: Watched
    ) -> None:
        """Compute what is not known yet."""
        missing = [key for key in wanted if not self.is_settled(key)]
        if not missing:
            return
        try:
            with watched(len(missing)) as begin_probe:
                for key in missing:
                    begin_probe()
                    self._probe(key, wanted[key])
        finally:
            # Also where time runs out in the middle: the next process goes on from there.
            found = {key: self.scores[key] for key in missing if key in self.scores}
            self._memory.learn(found)

    def _probe(self, key: str, compute: Callable[[], float]) -> None:
        """Compute one score."""
        try:
            value = compute()
        except Exception as error:
            self._failed(key, error)
        else:
            is_finite = np.isfinite(value)
            self.scores[key] = float(value) if is_finite else float("inf")

    def loss(self, key: str) -> float:
        """Return a loss that was found out; infinite where that failed."""
        return self.scores.get(key, float("inf"))

    def _failed(self, key: str, error: Exception) -> None:
        text = f"{type(error).__name__}: {error}"
        if text not in self.failures.values():
            self._note(f"sensitivity {key} is taken as infinite: {text}")
        self.failures[key] = text
