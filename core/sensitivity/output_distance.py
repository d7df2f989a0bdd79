"""How far a candidate's outputs are from the float model's, over a few batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from octavo.core.contract.adapter import Batch, Candidate, Session
from octavo.core.contract.quantizer import Quantizer
from octavo.core.errors import SchemeError
from octavo.core.values.recipe import Recipe

from .op_errors import Transforms

Runner = Callable[[Candidate], Iterator[tuple[np.ndarray, ...]]]


class OutputDistance:
    """Measures whole recipes by the model's outputs.

    Args:
        session: The float model.
        realizer: Makes candidates.
        batches: A few calibration batches.

    Attributes:
        batches_run: Batches that candidates were run on.
    """

    def __init__(
        self, session: Session, realizer: Quantizer, batches: Sequence[Batch]
    ) -> None:
        self.batches_run = 0
        self._session = session
        self._realizer = realizer
        self._batches = batches
        self._references: list[tuple[np.ndarray, ...]] | None = None
        # Only the last one is kept: a runner may hold values of the whole float model.
        self._runner: tuple[Transforms, Runner] | None = None

    def of(self, recipe: Recipe) -> float:
        """Return ||y - y0||^2 / ||y0 - mean y0||^2 over the batches.

        Returns:
            The mean over the model's float outputs; infinite where the recipe cannot be carried
            out.
        """
        references = self._float_outputs()
        try:
            candidate = self._realizer.candidate(recipe, draft=True)
        except SchemeError:
            return float("inf")
        run = self._runner_of(recipe.transforms)
        error = 0.0
        power = 0.0
        for outputs, expected in zip(run(candidate), references, strict=True):
            self.batches_run += 1
            for y, y0 in zip(outputs, expected, strict=True):
                if np.issubdtype(y0.dtype, np.floating):
                    # Differences of nearly equal outputs need float64.
                    error += float(np.square(y.astype(np.float64) - y0).mean())
                    power += float(np.square(y0 - y0.mean()).mean())
        return error / power if power else error

    def _runner_of(self, transforms: Transforms) -> Runner:
        if self._runner is None or self._runner[0] != transforms:
            session = self._realizer.session(transforms)
            self._runner = (transforms, session.runner(self._batches))
        return self._runner[1]

    def _float_outputs(self) -> list[tuple[np.ndarray, ...]]:
        if self._references is None:
            reference = self._session.reference()
            self._references = [
                tuple(np.asarray(y) for y in reference.run(batch))
                for batch in self._batches
            ]
        return self._references
