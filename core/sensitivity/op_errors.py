"""What rounding does to each op by itself, from its weight and one pass over a few batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

import numpy as np

from octavo.core.calibration.features import FeatureObserver, Gram
from octavo.core.contract.adapter import Batch, Session
from octavo.core.numerics.affine import Array
from octavo.core.numerics.arrays import to_numpy
from octavo.core.numerics.rows import Rows, rows_of
from octavo.core.quantizing.realize import Realizer
from octavo.core.values.graph import Weight
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import OpScheme, PartChoice

from .input_moments import (
    Moments,
    SecondMoments,
    energy,
    rounding_noise,
    second_moments,
    weight_matrix,
)

Transforms = tuple[PartChoice, ...]
WIDEST_GRAM = 4096  # features; wider inputs are described by their second moments alone (64 MiB of float32 here)


@dataclass(frozen=True)
class WeightError:
    """One weight of an op under one scheme, or an op without weight.

    Attributes:
        weight: The weight; None for an op that has none.
        error: Error of the weight, (channels, features); zeros where there is none.
        second: Second moments of the rows that the weight multiplies, or None where they are not observed.
        whole: Energy of the product under the weight and these moments; 1 for an op without weight.
        noise: Energy that rounding the input adds to the output.
    """

    weight: Weight | None
    error: np.ndarray
    second: np.ndarray | None
    whole: float
    noise: float

    @property
    def share(self) -> float:
        """Share of the output's energy that rounding weight and input destroys."""
        return (self.noise + self.lost) / self.whole

    @property
    def curved(self) -> float:
        """Mean trace of the Hessian of the op's own squared output error, times its squared weight error, plus the input's noise.

        HAWQ-V2 (Dong et al. 2020, eq. 4) with the Hessian 2 X^T X / rows that OBQ and GPTQ use, which needs no gradients;
        divided by the energy of the output, so that ops compare.
        """
        second = self.second
        diagonal = (
            np.ones(1)
            if second is None
            else second
            if second.ndim == 2
            else np.diagonal(second, axis1=1, axis2=2)
        )
        return (self.noise + 2.0 * float(diagonal.mean()) * self.square) / self.whole

    @property
    def square(self) -> float:
        """Squared error of the weight."""
        return float(np.square(self.error).sum())

    @property
    def lost(self) -> float:
        """Energy that rounding the weight adds to the output."""
        return energy(self.error, self.second)

    @property
    def with_input(self) -> float:
        """What to multiply a measure of the weight's error with, to reckon in the input's: noise hurts as much wherever it is from."""
        return 1.0 + self.noise / self.lost if self.lost else 1.0


@dataclass
class _Observed:
    """What one pass over the batches shows."""

    moments: dict[str, Moments] = field(default_factory=dict)
    features: dict[tuple[str, Rows], FeatureObserver] = field(default_factory=dict)


class OpErrors:
    """Computes :class:`WeightError` for the ops of a unit.

    Args:
        realizer: Quantizes, and knows the model.
        batches: A few calibration batches.

    Attributes:
        batches_run: Batches that were observed.
    """

    def __init__(self, realizer: Realizer, batches: Sequence[Batch]) -> None:
        self.realizer = realizer
        self.batches = batches
        self.batches_run = 0
        self._observed: dict[Transforms, _Observed] = {}

    def of(
        self, ops: Sequence[str], scheme: OpScheme, transforms: Transforms
    ) -> Iterator[WeightError]:
        """Yield the error of each weight that the scheme changes, and of each op without one."""
        recipe = Recipe(
            self.realizer.space.schemes(ops, scheme), transforms, self.realizer.space.backend
        )
        parameters = self.realizer.parameters(recipe)
        session = self.realizer.session(transforms)
        observed = self._observe(session, transforms)
        for name in ops:
            op, given = self.realizer.opened.view.by_name[name], parameters.get(name)
            if given is None:
                continue
            moments = [observed.moments[v] for v in op.inputs if v in observed.moments]
            noises = [
                rounding_noise(given.scheme, m, p)
                for m, p in zip_longest(moments, given.inputs[: len(moments)])
            ]
            if op.weight is None or given.weight is None:
                share = sum(
                    noise / m.power for noise, m in zip(noises, moments, strict=True) if m.power
                )
                yield WeightError(None, np.zeros((1, 1)), None, 1.0, share)
                continue
            for held, quantized in zip(op.weights, (given.weight, *given.further), strict=True):
                weight = weight_matrix(session.tensor(held.name), held)
                error = weight - weight_matrix(quantized.dequantize(), held)
                rows = rows_of(op)
                met = observed.features[op.inputs[0], rows] if rows is not None else None
                second = second_moments(met) if met is not None and met.count else None
                if whole := energy(weight, second):
                    noise = (
                        noises[0] * float(np.square(weight).sum())
                        if noises and rows is not None
                        else 0.0
                    )
                    yield WeightError(held, error, second, whole, noise)

    def _observe(self, session: Session, transforms: Transforms) -> _Observed:
        """Run the batches once and keep the moments of every input of a tunable op."""
        if transforms not in self._observed:
            observed = _Observed()
            view = self.realizer.opened.view
            for op in (
                view.by_name[name] for unit in self.realizer.space.tunable for name in unit.ops
            ):
                observed.moments.update((value, Moments()) for value in op.inputs)
                rows = rows_of(op)
                if rows is not None and op.weight is not None:
                    width = op.weight.size // max(1, op.weight.shape[op.weight.channel_axis])
                    observed.features[op.inputs[0], rows] = (
                        Gram if width <= WIDEST_GRAM else SecondMoments
                    )(rows)

            def sink(value: str, x: Array) -> None:
                array = to_numpy(x)
                observed.moments[value].update(array)
                for (name, _), observer in observed.features.items():
                    if name == value:
                        observer.update(array)

            self.batches_run += session.observe(self.batches, tuple(observed.moments), sink)
            self._observed[transforms] = observed
        return self._observed[transforms]
