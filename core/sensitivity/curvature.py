"""How a model's output distance curves over its weights: what an adapter's gradients tell.

``Session.gradients`` gives draws g with E[g g^T] = H and products H v; H is the Hessian of the
distance D of the outputs to the float outputs, without labels. To second order an error d of the
weights costs D = d^T H d / 2: losses are in the unit of the distance.
"""

from __future__ import annotations

from collections.abc import (
    Callable,
    Iterator,
    Mapping,
    MutableMapping,
    Sequence,
)
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from octavo.core.contract.adapter import Batch, OpParameters, Session
from octavo.core.contract.quantizer import Quantizer
from octavo.core.errors import SchemeError
from octavo.core.numerics.affine import Array
from octavo.core.numerics.arrays import to_numpy
from octavo.core.numerics.layout import to_matrix
from octavo.core.numerics.rows import rows_of
from octavo.core.numerics.tensor import QuantizedTensor
from octavo.core.values.graph import Op, Weight
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import OpScheme

from .draws import DRAWS, Change, Differentiated, quadratic_forms
from .input_noise import InputNoises
from .keys import key_of
from .op_errors import Transforms
from .output_distance import OutputDistance
from .watching import Watched, unwatched

GRADIENT_RUNS = 3
"""What a backward pass is counted as: runs of the model that cost about as much."""

FEATURE = "gradients:metric"
"""The feature of an adapter whose gradients take a metric."""

Asked = tuple[Sequence[str], OpScheme]
"""The ops of a unit, and a scheme."""


@dataclass(frozen=True)
class Lent:
    """Gradients of another backend of the same model.

    Attributes:
        where: Transforms -> where they are taken.
        names: Transforms -> own weight name -> (its name there, the channel axis there), for the
            weights that are the same there.
    """

    where: Callable[[Transforms], Differentiated]
    names: Callable[[Transforms], Mapping[str, tuple[str, int]]]


@dataclass(frozen=True)
class _Rounded:
    """One op under one scheme.

    Attributes:
        asked: The scheme that its unit was asked under.
        op: The op.
        given: What the core decided for it.
        weights: Its weights with their codes.
    """

    asked: OpScheme
    op: Op
    given: OpParameters
    weights: tuple[tuple[Weight, QuantizedTensor], ...]


class Curvature:
    """Losses of units from gradients.

    Args:
        realizer: Quantizes, and knows the model.
        distance: Knows how outputs are compared.
        batches: A few calibration batches.
        scores: Where traces and quadratic forms are kept, by a key of text.
        seed: Of what is drawn.
        asked: How outputs are to be compared: a part of the keys.
        watched: Told of what is rounded, and of draws, as they go on.

    Attributes:
        batches_run: What the backward passes cost, in runs of a batch.
        borrowed: Another backend's gradients; None where the own ones are taken.
    """

    def __init__(
        self,
        realizer: Quantizer,
        distance: OutputDistance,
        batches: Sequence[Batch],
        scores: MutableMapping[str, float],
        seed: int,
        asked: str,
        watched: Watched = unwatched,
    ) -> None:
        self.batches_run = 0
        self.borrowed: Lent | None = None
        self._realizer = realizer
        self._distance = distance
        self._batches = batches
        self._scores = scores
        self._seed = seed
        self._asked = asked
        self._watched = watched

    @property
    def is_there(self) -> bool:
        """Whether there are gradients, own ones or another backend's of weights that are alike."""
        if "gradients" in self._realizer.opened.capability.features:
            return True
        required = self._realizer.space.required
        return self.borrowed is not None and bool(self.borrowed.names(required))

    def serves(
        self, ops: Sequence[str], scheme: OpScheme, transforms: Transforms
    ) -> bool:
        """Return whether gradients tell all that a scheme costs a unit.

        They are of weights: what rounding inputs costs is told where these meet rows of a weight.
        """
        for name in ops:
            op = self._realizer.opened.view.by_name[name]
            if not op.weights or scheme.output is not None:
                return False
            if self.borrowed is not None:
                known = self.borrowed.names(transforms)
                if any(weight.name not in known for weight in op.weights):
                    return False
            if scheme.input is not None and rows_of(op) is None:
                return False
        return True

    def price(self, *, with_inputs: bool) -> int:
        """Return the runs of a batch that draws for any number of pairs cost."""
        return (GRADIENT_RUNS * DRAWS + int(with_inputs)) * len(self._batches)

    def where(self, transforms: Transforms) -> Differentiated:
        """Return where this backend's own gradients are taken."""
        session = self._realizer.session(transforms)
        features = self._realizer.opened.capability.features
        metric = self._distance.metric if FEATURE in features else None
        return Differentiated(session, self._batches, metric)

    def first_order(
        self, ops: Sequence[str], scheme: OpScheme, transforms: Transforms
    ) -> float:
        """Estimate what the ops' rounded weights and inputs cost: the sum over weights.

        Of a tied weight's users the one that hurts most counts: its gradients are those of all its
        users together.

        Raises:
            SchemeError: If an op has no weight.
        """
        if not self._is_known(ops, scheme, transforms):
            # Raises what keeps the scheme from being carried out.
            for _ in self._rounded(ops, scheme, transforms):
                pass
        self.prepare([(ops, scheme)], transforms)
        largest: dict[str, float] = {}
        for name in ops:
            op = self._realizer.opened.view.by_name[name]
            if not op.weights:
                raise without_weight()
            for weight in op.weights:
                label = self._form(op, weight, scheme, transforms)
                # A weight that the scheme leaves as it is costs nothing.
                loss = self._scores.get(label, 0.0)
                largest[weight.name] = max(loss, largest.get(weight.name, 0.0))
        return sum(largest.values())

    def prepare(self, wanted: Sequence[Asked], transforms: Transforms) -> None:
        """Find what all pairs need together, in one pass of draws."""
        missing = [
            (ops, scheme)
            for ops, scheme in wanted
            if not self._is_known(ops, scheme, transforms)
        ]
        if not missing:
            return
        with self._watched(len(missing) + DRAWS) as begin:
            rounded = []
            for ops, scheme in missing:
                begin()
                # What cannot be rounded is asked for by itself again, and fails by itself.
                with suppress(Exception):
                    rounded += list(self._rounded(ops, scheme, transforms))
            noises = self._noises(rounded, transforms)
            changes, axes = self._changes(rounded, noises, transforms)
            if not changes:
                return
            where = self._differentiated(transforms)
            found = quadratic_forms(where, changes, axes, self._seed, begin)
        self.batches_run += GRADIENT_RUNS * DRAWS * len(self._batches)
        for label, form in found.items():
            self._scores[label] = 0.5 * form

    def _is_known(
        self, ops: Sequence[str], scheme: OpScheme, transforms: Transforms
    ) -> bool:
        by_name = self._realizer.opened.view.by_name
        labels = [
            self._form(by_name[name], weight, scheme, transforms)
            for name in ops
            for weight in by_name[name].weights
        ]
        return any(label in self._scores for label in labels)

    def _differentiated(self, transforms: Transforms) -> Differentiated:
        if self.borrowed is not None:
            return self.borrowed.where(transforms)
        return self.where(transforms)

    def _rounded(
        self, ops: Sequence[str], scheme: OpScheme, transforms: Transforms
    ) -> Iterator[_Rounded]:
        """Yield what a scheme makes of each op that it quantizes."""
        space = self._realizer.space
        recipe = Recipe(space.schemes(ops, scheme), transforms, space.backend)
        for name, given in self._realizer.parameters(recipe).items():
            if given.weight is not None:
                op = self._realizer.opened.view.by_name[name]
                codes = (given.weight, *given.further)
                weights = tuple(zip(op.weights, codes, strict=True))
                yield _Rounded(scheme, op, given, weights)

    def _noises(
        self, rounded: Sequence[_Rounded], transforms: Transforms
    ) -> InputNoises:
        """Observe what rounding the inputs adds, of all ops in one pass of the original model."""
        noises = InputNoises()
        change = partial(self._realizer.change, transforms=transforms)
        for one in rounded:
            label = self._key("noise", one.op.name, one.asked, transforms)
            noises.expect(label, one.op, one.given, change)
        session = self._realizer.opened.session
        self.batches_run += noises.observe(session, self._batches)
        return noises

    def _changes(
        self, rounded: Sequence[_Rounded], noises: InputNoises, transforms: Transforms
    ) -> tuple[dict[str, dict[str, Change]], dict[str, int]]:
        """Return weight name, where gradients are taken -> label -> change, and channel axes."""
        session = self._realizer.session(transforms)
        seen = noises.found()
        changes: dict[str, dict[str, Change]] = {}
        axes: dict[str, int] = {}
        for one in rounded:
            noise = seen.get(self._key("noise", one.op.name, one.asked, transforms))
            for weight, codes in one.weights:
                name, axis = self._there(weight, transforms)
                label = self._form(one.op, weight, one.asked, transforms)
                added = direction = None
                if noise is not None:
                    matrix = to_matrix(session.tensor(weight.name), weight.channel_axis)
                    added = noise.per_channel(to_numpy(matrix))
                    direction = noise.direction
                error = _error_of(session, weight, codes)
                changes.setdefault(name, {})[label] = Change(error, added, direction)
                axes[name] = axis
        return changes, axes

    def _there(self, weight: Weight, transforms: Transforms) -> tuple[str, int]:
        """Return a weight's name and channel axis where gradients are taken."""
        if self.borrowed is not None:
            return self.borrowed.names(transforms)[weight.name]
        return weight.name, weight.channel_axis

    def _form(
        self, op: Op, weight: Weight, scheme: OpScheme, transforms: Transforms
    ) -> str:
        return self._key("form", f"{op.name}:{weight.name}", scheme, transforms)

    def _key(
        self, kind: str, name: str, scheme: OpScheme | None, transforms: Transforms
    ) -> str:
        return key_of(f"{kind}/{self._asked}", name, scheme, transforms)


def without_weight() -> SchemeError:
    """Return what is raised for an op that gradients say nothing of."""
    return SchemeError(
        "sensitivities from gradients are of weights, and this op has none; "
        "ask for output_distance"
    )


def _error_of(
    session: Session, weight: Weight, rounded: QuantizedTensor
) -> Callable[[], Array]:
    """Return a function that computes a weight's error anew, so that none is kept in memory."""

    def error() -> Array:
        difference = session.tensor(weight.name) - rounded.dequantize()
        return to_matrix(difference, weight.channel_axis)

    return error
