"""How far a candidate's outputs are from the float model's, over a few batches."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from octavo.core.contract.adapter import Batch, Candidate
from octavo.core.contract.output_metric import OutputMetric
from octavo.core.contract.quantizer import Quantizer
from octavo.core.errors import SchemeError
from octavo.core.system.log import remark
from octavo.core.values.recipe import Recipe

from .fitting import fitted, told
from .op_errors import Transforms

Runner = Callable[[Candidate], Iterator[tuple[np.ndarray, ...]]]


class OutputDistance:
    """Measures whole recipes by the model's outputs.

    Args:
        realizer: Makes candidates.
        batches: A few calibration batches.
        asked: How outputs are compared: ``auto``, ``kl``, ``cosine`` or ``variance``.

    Attributes:
        batches_run: Batches that candidates and the float model were run on.
    """

    def __init__(
        self,
        realizer: Quantizer,
        batches: Sequence[Batch],
        asked: str = "auto",
    ) -> None:
        self.batches_run = 0
        self._realizer = realizer
        self._batches = batches
        self._asked = asked
        self._metric: OutputMetric | None = None
        self._references: list[tuple[np.ndarray, ...]] = []
        # Only the last one is kept: a runner may hold values of the whole float model.
        self._runner: tuple[Transforms, Runner] | None = None

    @property
    def price(self) -> int:
        """Runs of the float model that the first distance takes."""
        return 0 if self._metric else len(self._batches)

    @property
    def metric(self) -> OutputMetric:
        """How outputs are compared; the float model is run once to find out."""
        if self._metric is None:
            opened = self._realizer.opened
            reference = opened.session.reference()
            found = []
            for batch in self._batches:
                found.append(tuple(np.asarray(y) for y in reference.run(batch)))
                self.batches_run += 1
            self._references = [_floats(outputs) for outputs in found]
            self._metric = fitted(opened.view, self._batches, found, self._asked)
            line = f"{opened.name}: {told(self._metric, self._asked)}"
            remark(line, "tuning", logging.INFO)
        return self._metric

    def of(self, recipe: Recipe) -> float:
        """Return the distance of a recipe's outputs to the float model's.

        Returns:
            The mean over rows and outputs, see :mod:`octavo.core.contract.output_metric`; infinite
            where the recipe cannot be carried out.
        """
        metric = self.metric
        try:
            candidate = self._realizer.candidate(recipe, draft=True)
        except SchemeError:
            return float("inf")
        run = self._runner_of(recipe.transforms)
        return self._mean(metric, run(candidate))

    def between(self, candidate: Candidate) -> float:
        """Return the distance of a whole model's outputs to the float model's.

        Args:
            candidate: It, as trials run it.
        """
        metric = self.metric
        return self._mean(metric, map(candidate.run, self._batches))

    def _mean(
        self, metric: OutputMetric, outputs: Iterable[tuple[np.ndarray, ...]]
    ) -> float:
        """Return the mean over the batches."""
        total = 0.0
        for number, found in enumerate(outputs):
            self.batches_run += 1
            own = tuple(np.asarray(output) for output in found)
            total += self._of_batch(metric, _floats(own), number)
        return total / max(1, len(self._batches))

    def _of_batch(
        self, metric: OutputMetric, outputs: Sequence[np.ndarray], number: int
    ) -> float:
        """Return one batch's part of the distance."""
        expected = self._references[number]
        total = 0.0
        for place in metric.counted:
            losses = metric.losses(place, outputs[place], expected[place], number)
            total += losses * metric.weight(place)
        return total

    def _runner_of(self, transforms: Transforms) -> Runner:
        if self._runner is None or self._runner[0] != transforms:
            session = self._realizer.session(transforms)
            self._runner = (transforms, session.runner(self._batches))
        return self._runner[1]


def _floats(outputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    return tuple(y for y in outputs if np.issubdtype(y.dtype, np.floating))
