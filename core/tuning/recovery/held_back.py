"""What held-back samples say of a model that has learned: its outputs' distance to the float
model's, beside that of its start."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

from octavo.core.contract.adapter import Batch, Candidate
from octavo.core.contract.recovery import held_back
from octavo.core.sensitivity.output_distance import OutputDistance
from octavo.core.tuning.bench import Backend, Judge
from octavo.core.values.recipe import Recipe

MOST = 4
"""Batches that judge at most: the float model's outputs on them are held."""


class HeldBack:
    """Judges what was learned by the batches that nothing was learned from.

    Args:
        backend: Its calibration was done.
        metric: How outputs are compared.
    """

    def __init__(self, backend: Backend, metric: str) -> None:
        self._backend = backend
        self._metric = metric

    @cached_property
    def _batches(self) -> tuple[Batch, ...]:
        given = self._backend.realizer.recovering.batches
        every = list(given or ())
        if len(every) < 2:
            return ()
        return tuple(every[index] for index in held_back(len(every))[:MOST])

    @cached_property
    def _distance(self) -> OutputDistance:
        return OutputDistance(self._backend.realizer, self._batches, self._metric)

    def __bool__(self) -> bool:
        """Whether there is a batch to judge by and another to learn from."""
        return bool(self._batches)

    @property
    def is_of_predictions(self) -> bool:
        """Whether the model's first output is what distillation learns: predictions."""
        return self._distance.metric.kinds[:1] in (("kl",), ("probabilities",))

    def judge(self, start: Recipe) -> Judge:
        """Return what judges a model that learned from where another recipe was.

        Args:
            start: That recipe.
        """

        def judged(candidate: Candidate) -> Mapping[str, float]:
            before = self._distance.between(self._backend.realizer.candidate(start))
            return {"before": before, "after": self._distance.between(candidate)}

        return judged


__all__ = ["HeldBack"]
