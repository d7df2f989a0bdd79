"""What rounding does to each op by itself, from its weight and one pass over a few batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import zip_longest

import numpy as np

from octavo.core.calibration.features import FeatureObserver, FeatureSquare, Gram
from octavo.core.contract.adapter import Batch, OpParameters, Session
from octavo.core.contract.quantizer import Quantizer
from octavo.core.numerics.affine import Array
from octavo.core.numerics.arrays import to_numpy
from octavo.core.numerics.channels import Change, ChannelMap
from octavo.core.numerics.rows import Rows, rows_of
from octavo.core.values.graph import Op, Weight
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import OpScheme, PartChoice

from .input_moments import (
    Moments,
    energy,
    rounding_noise,
    second_moments,
    weight_matrix,
)

Transforms = tuple[PartChoice, ...]

WIDEST_GRAM = 4096
"""Features of which the whole Gram matrix is kept (64 MiB of float32); wider inputs are described
by the squares of their features alone."""


@dataclass(frozen=True)
class WeightError:
    """One weight of an op under one scheme, or an op without weight.

    Attributes:
        weight: The weight; None for an op that has none.
        error: Error of the weight, (channels, features); zeros where there is none.
        second: Second moments of the rows that the weight multiplies, or None where they are not
            observed.
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
        """Mean trace of the Hessian of the op's own squared output error, times the squared error.

        HAWQ-V2 (Dong et al. 2020, eq. 4) with the Hessian 2 X^T X / rows that OBQ and GPTQ use,
        which needs no gradients. The input's noise is added, and the sum is divided by the energy
        of the output, so that ops compare.
        """
        mean_trace = 2.0 * _mean_of_diagonal(self.second)
        return (self.noise + mean_trace * self.square) / self.whole

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
        """What to multiply a measure of the weight's error with, to reckon in the input's.

        Noise hurts as much wherever it is from.
        """
        lost = self.lost
        return 1.0 + self.noise / lost if lost else 1.0


def _mean_of_diagonal(second: np.ndarray | None) -> float:
    """Return the mean second moment of a feature: of whole matrices, diagonals, or the identity."""
    if second is None:
        return 1.0
    if second.ndim == 2:
        return float(second.mean())
    return float(np.diagonal(second, axis1=1, axis2=2).mean())


_Met = tuple[str, tuple[ChannelMap, ...]]
"""A value, and what transforms did to it before an op meets it."""


@dataclass
class _Observed:
    """What one pass of the original model over the batches shows, as each op meets it.

    Attributes:
        met: (op, value) -> the value as the op meets it.
        axes: Axis of a value's channels.
        moments: Of each value as some op meets it.
        features: Likewise, of the rows that a weight multiplies.
    """

    met: dict[tuple[str, str], _Met] = field(default_factory=dict)
    axes: dict[_Met, int] = field(default_factory=dict)
    moments: dict[_Met, Moments] = field(default_factory=dict)
    features: dict[tuple[_Met, Rows], FeatureObserver] = field(default_factory=dict)

    def expect(self, op: Op, change: Callable[[str, str], Change]) -> None:
        """Make room for the inputs of an op.

        Args:
            op: The op.
            change: (op, value) -> what transforms do to the value before the op meets it.
        """
        for value in op.inputs:
            maps, axis = change(op.name, value)
            met = (value, maps)
            self.met[op.name, value] = met
            self.axes[met] = axis
            self.moments.setdefault(met, Moments())
        rows = rows_of(op)
        if rows is None or op.weight is None:
            return
        channels = op.weight.shape[op.weight.channel_axis]
        width = op.weight.size // max(1, channels)
        observer = Gram if width <= WIDEST_GRAM else FeatureSquare
        met = self.met[op.name, op.inputs[0]]
        self.features.setdefault((met, rows), observer(rows))

    def update(self, value: str, x: Array) -> None:
        """Take one batch of one value of the original model."""
        for met, moments in self.moments.items():
            name, maps = met
            if name != value:
                continue
            changed = x
            for one in maps:
                changed = one.apply(changed, self.axes[met])
            array = to_numpy(changed)
            moments.update(array)
            for (its, _), observer in self.features.items():
                if its == met:
                    observer.update(array)

    def noises(self, op: Op, given: OpParameters) -> list[tuple[float, Moments]]:
        """Return the noise power of rounding each input that was observed, and its moments."""
        met = [self.met[op.name, v] for v in op.inputs if (op.name, v) in self.met]
        moments = [self.moments[its] for its in met]
        return [
            (rounding_noise(given.scheme, own, params), own)
            for own, params in zip_longest(moments, given.inputs[: len(moments)])
        ]

    def second_moments(self, op: Op) -> np.ndarray | None:
        """Return the second moments of the rows that an op multiplies; None where none were met."""
        rows = rows_of(op)
        if rows is None:
            return None
        observer = self.features[self.met[op.name, op.inputs[0]], rows]
        return second_moments(observer) if observer.count else None


class OpErrors:
    """Computes :class:`WeightError` for the ops of a unit.

    Args:
        realizer: Quantizes, and knows the model.
        batches: A few calibration batches.

    Attributes:
        batches_run: Batches that were observed.
    """

    def __init__(self, realizer: Quantizer, batches: Sequence[Batch]) -> None:
        self.realizer = realizer
        self.batches = batches
        self.batches_run = 0
        self._observed: dict[Transforms, _Observed] = {}

    def price(self, transforms: Transforms) -> int:
        """Return the runs of a batch that looking at the inputs still costs."""
        return 0 if transforms in self._observed else len(self.batches)

    def of(
        self, ops: Sequence[str], scheme: OpScheme, transforms: Transforms
    ) -> Iterator[WeightError]:
        """Yield the error of each weight that the scheme changes, and of each op without one."""
        space = self.realizer.space
        recipe = Recipe(space.schemes(ops, scheme), transforms, space.backend)
        parameters = self.realizer.parameters(recipe)
        session = self.realizer.session(transforms)
        observed = self._observe(transforms)
        for name in ops:
            given = parameters.get(name)
            if given is None:
                continue
            op = self.realizer.opened.view.by_name[name]
            if op.weight is None or given.weight is None:
                yield _without_weight(op, given, observed)
            else:
                yield from _of_weights(op, given, session, observed)

    def share(
        self, ops: Sequence[str], scheme: OpScheme, transforms: Transforms
    ) -> float:
        """Return the shares of the ops' output energy that a scheme destroys, added up."""
        return sum(error.share for error in self.of(ops, scheme, transforms))

    def curved(
        self, ops: Sequence[str], scheme: OpScheme, transforms: Transforms
    ) -> float:
        """Return the ops' :attr:`WeightError.curved`, added up."""
        return sum(error.curved for error in self.of(ops, scheme, transforms))

    def _observe(self, transforms: Transforms) -> _Observed:
        """Run the batches once and keep the moments of every input of a tunable op.

        The original model runs: in a rescaled one, whoever reads a divided value and is no member
        of its group meets the value as it was, and a member of a group without a producer divides
        it by itself.
        """
        if transforms not in self._observed:
            observed = _Observed()
            change = partial(self.realizer.change, transforms=transforms)
            view = self.realizer.opened.view
            for unit in self.realizer.space.tunable:
                for name in unit.ops:
                    observed.expect(view.by_name[name], change)
            session = self.realizer.opened.session
            values = tuple(dict.fromkeys(value for value, _ in observed.moments))
            self.batches_run += session.observe(self.batches, values, observed.update)
            self._observed[transforms] = observed
        return self._observed[transforms]


def _without_weight(op: Op, given: OpParameters, observed: _Observed) -> WeightError:
    """Return what rounding the inputs of an op without a weight does, as shares of their energy."""
    share = 0.0
    for noise, moments in observed.noises(op, given):
        if moments.power:
            share += noise / moments.power
    return WeightError(None, np.zeros((1, 1)), None, 1.0, share)


def _of_weights(
    op: Op, given: OpParameters, session: Session, observed: _Observed
) -> Iterator[WeightError]:
    """Yield the error of each weight of an op; none for weights that give no output."""
    assert given.weight is not None
    noises = observed.noises(op, given)
    second = observed.second_moments(op)
    is_product = rows_of(op) is not None
    for held, quantized in zip(op.weights, (given.weight, *given.further), strict=True):
        weight = weight_matrix(session.tensor(held.name), held)
        error = weight - weight_matrix(quantized.dequantize(), held)
        whole = energy(weight, second)
        if not whole:
            continue
        noise = 0.0
        if noises and is_product:
            input_noise, _ = noises[0]
            noise = input_noise * float(np.square(weight).sum())
        yield WeightError(held, error, second, whole, noise)
