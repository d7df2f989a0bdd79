"""How a model's output distance curves over its weights: what an adapter's gradients tell.

``Session.gradients`` gives draws g with E[g g^T] = H and products H v; H is the Hessian of the
distance D of the outputs to the float outputs, without labels. To second order an error d of the
weights costs 2 D = d^T H d.
"""

from __future__ import annotations

import zlib
from collections.abc import (
    Callable,
    Iterable,
    Iterator,
    Mapping,
    MutableMapping,
    Sequence,
)
from contextlib import AbstractContextManager, nullcontext

import numpy as np
from array_api_compat import array_namespace, device

from octavo.core.contract.adapter import Batch, Session
from octavo.core.contract.quantizer import Quantizer
from octavo.core.errors import SchemeError
from octavo.core.numerics.affine import Array
from octavo.core.numerics.layout import to_matrix
from octavo.core.numerics.tensor import QuantizedTensor
from octavo.core.values.graph import Weight
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import OpScheme

from .keys import key_of
from .op_errors import OpErrors, Transforms, WeightError

DRAWS = 8
"""Gradients, or directions of a Hessian-vector product, that are drawn on every batch."""

# What a backward pass is counted as: runs of the model that cost about as much.
GRADIENT_RUNS = 3
PRODUCT_RUNS = 6

ErrorOf = Callable[[], tuple[Array, int]]
"""Returns an error of a weight's shape, and the weight's channel axis."""

Errors = Mapping[str, ErrorOf]
"""Label -> error; several errors of one weight."""

Watched = Callable[[int], AbstractContextManager[Callable[[], None]]]
"""Is told how many probes or draws there will be, and gives what is called before each of them.

That may end them by what it raises, which is no ``Exception``.
"""


def unwatched(count: int) -> AbstractContextManager[Callable[[], None]]:
    """Watch nothing."""
    return nullcontext(_nothing)


def _nothing() -> None:
    pass


class Curvature:
    """Losses of units from gradients.

    Args:
        realizer: Quantizes, and knows the model.
        errors: Each op's own errors: what rounding inputs adds, compared with the weight's part.
        batches: A few calibration batches.
        scores: Where traces and quadratic forms are kept, by a key of text.
        seed: Of what is drawn.
        watched: Told of draws as they go on.

    Attributes:
        batches_run: What the backward passes cost, in runs of a batch.
        lent: Traces of another backend of the same model, by this backend's weight names; None
            where the own ones are taken.
    """

    def __init__(
        self,
        realizer: Quantizer,
        errors: OpErrors,
        batches: Sequence[Batch],
        scores: MutableMapping[str, float],
        seed: int,
        watched: Watched = unwatched,
    ) -> None:
        self.batches_run = 0
        self.lent: Callable[[Transforms], Mapping[str, float]] | None = None
        self._realizer = realizer
        self._errors = errors
        self._batches = batches
        self._scores = scores
        self._seed = seed
        self._watched = watched

    def traced(
        self, ops: Sequence[str], scheme: OpScheme, transforms: Transforms
    ) -> float:
        """Return the mean trace of the Hessian at the model's outputs times the squared error.

        That is HAWQ-V2's eq. 4. What rounding an op's input adds is reckoned in as if it hurt
        like the same energy of weight error.

        Raises:
            SchemeError: If an op has no weight.
        """
        traces_of = self.lent or self.traces
        found = traces_of(transforms)

        def loss(weight: Weight, error: WeightError) -> float:
            mean_trace = found[weight.name] / weight.size
            return mean_trace * error.square * error.with_input

        return self._total(ops, scheme, transforms, loss)

    def traces(self, transforms: Transforms = ()) -> Mapping[str, float]:
        """Return the trace of each tunable weight's block of H, by name; computed once."""
        names = self._tunable_weights()
        keys = {name: key_of("trace", name, None, transforms) for name in names}
        missing = [name for name, key in keys.items() if key not in self._scores]
        if missing:
            session = self._realizer.session(transforms)
            with self._watched(DRAWS) as begin_draw:
                found = traces(session, self._batches, missing, self._seed, begin_draw)
            self.batches_run += PRODUCT_RUNS * DRAWS * len(self._batches)
            for name, trace in found.items():
                self._scores[keys[name]] = trace
        return {name: self._scores[key] for name, key in keys.items()}

    def _tunable_weights(self) -> Iterable[str]:
        """Return the names of the weights of every tunable unit, each once."""
        by_name = self._realizer.opened.view.by_name
        names: dict[str, None] = {}
        for unit in self._realizer.space.tunable:
            for op in unit.ops:
                names.update((weight.name, None) for weight in by_name[op].weights)
        return names

    def first_order(
        self, ops: Sequence[str], scheme: OpScheme, transforms: Transforms
    ) -> float:
        """Estimate d^T H d of the ops' weight errors, and what rounding their inputs adds.

        Raises:
            SchemeError: If an op has no weight.
        """
        self.prepare([(ops, scheme)], transforms)

        def loss(weight: Weight, error: WeightError) -> float:
            form = self._scores[key_of("form", weight.name, scheme, transforms)]
            return form * error.with_input

        return self._total(ops, scheme, transforms, loss)

    def _total(
        self,
        ops: Sequence[str],
        scheme: OpScheme,
        transforms: Transforms,
        loss: Callable[[Weight, WeightError], float],
    ) -> float:
        """Return the sum of the losses of the ops' weights, a tied weight's once.

        The gradients of a tied weight are those of all its users together.
        """
        largest: dict[str, float] = {}
        for error in self._errors.of(ops, scheme, transforms):
            weight = error.weight
            if weight is None:
                raise SchemeError(
                    "sensitivities from gradients are of weights, and this op has none; "
                    "ask for output_distance"
                )
            value = loss(weight, error)
            largest[weight.name] = max(value, largest.get(weight.name, 0.0))
        return sum(largest.values())

    def prepare(
        self, wanted: Sequence[tuple[Sequence[str], OpScheme]], transforms: Transforms
    ) -> None:
        """Find d^T H d for all weights together.

        The backward passes are the price, whatever the number of errors.
        """
        session = self._realizer.session(transforms)
        errors: dict[str, dict[str, ErrorOf]] = {}
        for ops, scheme in wanted:
            for weight, rounded in self._rounded(ops, scheme, transforms):
                name = weight.name
                key = key_of("form", name, scheme, transforms)
                if key not in self._scores:
                    of_weight = errors.setdefault(name, {})
                    of_weight[key] = _error_of(session, weight, rounded)
        if errors:
            with self._watched(DRAWS) as begin_draw:
                found = quadratic_forms(
                    session, self._batches, errors, self._seed, begin_draw
                )
            self.batches_run += GRADIENT_RUNS * DRAWS * len(self._batches)
            self._scores.update(found)

    def _rounded(
        self, ops: Sequence[str], scheme: OpScheme, transforms: Transforms
    ) -> Iterator[tuple[Weight, QuantizedTensor]]:
        """Yield each weight that a scheme quantizes, and its codes."""
        space = self._realizer.space
        recipe = Recipe(space.schemes(ops, scheme), transforms, space.backend)
        for name, decided in self._realizer.parameters(recipe).items():
            if decided.weight is None:
                continue
            weights = self._realizer.opened.view.by_name[name].weights
            rounded = (decided.weight, *decided.further)
            yield from zip(weights, rounded, strict=True)


def _error_of(session: Session, weight: Weight, rounded: QuantizedTensor) -> ErrorOf:
    """Return a function that computes a weight's error anew, so that none is kept in memory."""

    def error() -> tuple[Array, int]:
        difference = session.tensor(weight.name) - rounded.dequantize()
        return difference, weight.channel_axis

    return error


def quadratic_forms(
    session: Session,
    batches: Sequence[Batch],
    errors: Mapping[str, Errors],
    seed: int = 0,
    begin_draw: Callable[[], None] = _nothing,
) -> dict[str, float]:
    """Estimate d^T H d for several errors of several weights, in one pass of draws.

    It is the mean over draws of the sum over output channels of (g . d)^2. A channel's part,
    written with the gradient at the op's output and the output's change, is ModelOpt's score
    (gradient x output change)^2. Rounding errors of different channels are independent, so that
    the products between channels cancel.

    Args:
        session: Offers ``gradients``.
        batches: Batches.
        errors: Weight name -> label -> a function that returns (error of the weight's shape,
            channel axis). It is called for each draw, so that no error is kept.
        seed: Of the draws.
        begin_draw: Called before each.

    Returns:
        Label -> the estimate.
    """
    sums = {label: 0.0 for wanted in errors.values() for label in wanted}
    count = 0

    def sink(name: str, gradient: Array) -> None:
        for label, error in errors[name].items():
            d, axis = error()
            xp = array_namespace(gradient)
            rows = to_matrix(gradient, axis)
            error_rows = to_matrix(d, axis)
            # One share per output channel.
            shares = xp.sum(rows * error_rows, axis=1)
            total = xp.sum(shares * shares)
            sums[label] += float(total)

    for draw in range(DRAWS):
        begin_draw()
        count += session.gradients(batches, tuple(errors), sink, seed=seed + draw)
    return {label: total / max(1, count) for label, total in sums.items()}


def traces(
    session: Session,
    batches: Sequence[Batch],
    weights: Sequence[str],
    seed: int = 0,
    begin_draw: Callable[[], None] = _nothing,
) -> dict[str, float]:
    """Return the trace of each weight's own block of H, by Hutchinson's estimator.

    It is E[v . H v] for random signs v; HAWQ-V2 (Dong et al. 2020, arXiv:1911.03852, section 3.3).
    All weights move together: the blocks between two of them are multiplied by independent signs
    and cancel.

    Args:
        session: Offers ``gradients``.
        batches: Batches.
        weights: Names.
        seed: Of the signs.
        begin_draw: Called before each set of signs.
    """
    sums = dict.fromkeys(weights, 0.0)
    count = 0
    for draw in range(DRAWS):
        begin_draw()
        signs = {
            name: _signs(session.tensor(name), seed, draw, name) for name in weights
        }

        def sink(name: str, product: Array, signs: Mapping[str, Array] = signs) -> None:
            xp = array_namespace(product)
            along = xp.sum(signs[name] * product)
            sums[name] += float(along)

        count += session.gradients(batches, weights, sink, along=signs)
    # Where the true trace is near 0 the estimate may fall below it; losses are never negative.
    return {name: max(0.0, total / max(1, count)) for name, total in sums.items()}


def _signs(like: Array, seed: int, draw: int, name: str) -> Array:
    """Return random signs of a tensor's shape, float32, on its device."""
    # A CRC and not hash(), which differs from process to process.
    random = np.random.default_rng([seed, draw, zlib.crc32(name.encode())])
    bits = random.integers(0, 2, tuple(like.shape), dtype=np.int8)
    signs = bits.astype(np.float32) * 2 - 1
    xp = array_namespace(like)
    return xp.asarray(signs, device=device(like))
