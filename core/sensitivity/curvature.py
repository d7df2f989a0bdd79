"""How a model's output distance curves over its weights: what gradients tell, by the adapter's one primitive for them.

``Session.gradients`` gives draws g with E[g g^T] = H and products H v; H is the Hessian of the distance D of the outputs to the
float outputs, without labels. To second order an error d of the weights costs 2 D = d^T H d.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence

import numpy as np
from array_api_compat import array_namespace, device

from octavo.core.contract.adapter import Batch, Session
from octavo.core.errors import SchemeError
from octavo.core.numerics.affine import Array
from octavo.core.numerics.layout import to_matrix
from octavo.core.quantizing.realize import Realizer
from octavo.core.values.graph import Weight
from octavo.core.values.json_form import canonical_json
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import OpScheme

from .op_errors import OpErrors, Transforms

DRAWS = 8  # of gradients or directions, each on every batch
GRADIENT_RUNS, PRODUCT_RUNS = (
    3,
    6,
)  # runs of the model that a gradient, or a Hessian-vector product, costs about as much as

Errors = Mapping[str, Callable[[], tuple[Array, int]]]


class Curvature:
    """Losses of units from gradients.

    Args:
        realizer: Quantizes, and knows the model.
        errors: Each op's own errors: what rounding inputs adds, compared with the weight's part.
        batches: A few calibration batches.
        scores: Where traces and quadratic forms are kept, by a key of text.
        seed: Of what is drawn.

    Attributes:
        batches_run: What the backward passes cost, in runs of a batch.
        lent: Traces of another backend of the same model, by this backend's weight names; None where the own ones are taken.
    """

    def __init__(
        self,
        realizer: Realizer,
        errors: OpErrors,
        batches: Sequence[Batch],
        scores: MutableMapping[str, float],
        seed: int,
    ) -> None:
        self.batches_run = 0
        self.lent: Callable[[Transforms], Mapping[str, float]] | None = None
        self._realizer = realizer
        self._errors = errors
        self._batches = batches
        self._scores = scores
        self._seed = seed

    def traced(self, ops: Sequence[str], scheme: OpScheme, transforms: Transforms) -> float:
        """Return the mean trace of the Hessian at the model's outputs times the squared weight error (HAWQ-V2, eq. 4).

        What rounding an op's input adds is reckoned in as if it hurt like the same energy of weight error.

        Raises:
            SchemeError: If an op has no weight.
        """
        found = (self.lent or self.traces)(transforms)
        return _once(
            (w.name, found[w.name] / w.size * e.square * e.with_input)
            for e in self._errors.of(ops, scheme, transforms)
            for w in (_weight(e.weight),)
        )

    def traces(self, transforms: Transforms = ()) -> Mapping[str, float]:
        """Return the trace of each tunable weight's block of the Hessian, by name; computed once."""
        by_name = self._realizer.opened.view.by_name
        names = dict.fromkeys(
            w.name for u in self._realizer.space.tunable for o in u.ops for w in by_name[o].weights
        )
        keys = {name: _key("trace", name, None, transforms) for name in names}
        if missing := [n for n, key in keys.items() if key not in self._scores]:
            found = traces(self._realizer.session(transforms), self._batches, missing, self._seed)
            self.batches_run += PRODUCT_RUNS * DRAWS * len(self._batches)
            self._scores.update({keys[n]: value for n, value in found.items()})
        return {n: self._scores[key] for n, key in keys.items()}

    def first_order(self, ops: Sequence[str], scheme: OpScheme, transforms: Transforms) -> float:
        """Return an estimate of d^T H d of the ops' weight errors, and what rounding their inputs adds.

        Raises:
            SchemeError: If an op has no weight.
        """
        self.prepare([(ops, scheme)], transforms)
        return _once(
            (w.name, self._scores[_key("form", w.name, scheme, transforms)] * e.with_input)
            for e in self._errors.of(ops, scheme, transforms)
            for w in (_weight(e.weight),)
        )

    def prepare(
        self, wanted: Sequence[tuple[Sequence[str], OpScheme]], transforms: Transforms
    ) -> None:
        """Find d^T H d for all weights together: the backward passes are the price, whatever the number of errors."""
        session, errors = (
            self._realizer.session(transforms),
            dict[str, dict[str, Callable[[], tuple[Array, int]]]](),
        )
        for ops, scheme in wanted:
            space = self._realizer.space
            given = self._realizer.parameters(
                Recipe(space.schemes(ops, scheme), transforms, space.backend)
            )
            for name, decided in given.items():
                quantized = () if decided.weight is None else (decided.weight, *decided.further)
                for weight, rounded in zip(
                    self._realizer.opened.view.by_name[name].weights if quantized else (),
                    quantized,
                    strict=True,
                ):
                    key = _key("form", weight.name, scheme, transforms)
                    if key not in self._scores:
                        errors.setdefault(weight.name, {})[key] = lambda w=weight, q=rounded: (  # type: ignore[misc]
                            session.tensor(w.name) - q.dequantize(),
                            w.channel_axis,
                        )
        if errors:
            found = quadratic_forms(session, self._batches, errors, self._seed)
            self.batches_run += GRADIENT_RUNS * DRAWS * len(self._batches)
            self._scores.update(found)


def quadratic_forms(
    session: Session, batches: Sequence[Batch], errors: Mapping[str, Errors], seed: int = 0
) -> dict[str, float]:
    """Return an estimate of d^T H d for several errors of several weights, in one pass of draws over the batches.

    The mean over draws of the sum over output channels of (g . d)^2. A channel's part, written with the gradient at the op's
    output and the output's change, is ModelOpt's score (gradient x output change)^2. Rounding errors of different channels
    are independent, so that the products between channels cancel.

    Args:
        session: Offers ``gradients``.
        batches: Batches.
        errors: Weight name -> label -> a function that returns (error of the weight's shape, channel axis). It is called
            for each draw, so that no error is kept.
        seed: Of the draws.
    """
    sums = dict.fromkeys((label for wanted in errors.values() for label in wanted), 0.0)
    count = 0

    def sink(name: str, gradient: Array) -> None:
        for label, error in errors[name].items():
            d, axis = error()
            xp = array_namespace(gradient)
            shares = xp.sum(to_matrix(gradient, axis) * to_matrix(d, axis), axis=1)
            sums[label] += float(xp.sum(shares * shares))

    for draw in range(DRAWS):
        count += session.gradients(batches, tuple(errors), sink, seed=seed + draw)
    return {label: total / max(1, count) for label, total in sums.items()}


def traces(
    session: Session, batches: Sequence[Batch], weights: Sequence[str], seed: int = 0
) -> dict[str, float]:
    """Return the trace of each weight's own block of H, by Hutchinson's estimator: E[v . H v] for random signs v.

    HAWQ-V2 (Dong et al. 2020, arXiv:1911.03852, section 3.3). All weights move together: the blocks between two of them are
    multiplied by independent signs and cancel.

    Args:
        session: Offers ``gradients``.
        batches: Batches.
        weights: Names.
        seed: Of the signs.
    """
    sums = dict.fromkeys(weights, 0.0)
    count = 0
    for draw in range(DRAWS):
        signs = {name: _signs(session.tensor(name), seed, draw, name) for name in weights}

        def sink(name: str, product: Array, signs: Mapping[str, Array] = signs) -> None:
            sums[name] += float(array_namespace(product).sum(signs[name] * product))

        count += session.gradients(batches, weights, sink, along=signs)
    return {name: max(0.0, total / max(1, count)) for name, total in sums.items()}


def _signs(like: Array, seed: int, draw: int, name: str) -> Array:
    random = np.random.default_rng([seed, draw, zlib.crc32(name.encode())])
    drawn = random.integers(0, 2, tuple(like.shape), dtype=np.int8).astype(np.float32) * 2 - 1
    return array_namespace(like).asarray(drawn, device=device(like))


def _once(terms: Iterable[tuple[str, float]]) -> float:
    """Return the sum over weights: the gradients of a tied one are those of all its users together, and count once."""
    largest: dict[str, float] = {}
    for name, value in terms:
        largest[name] = max(value, largest.get(name, 0.0))
    return sum(largest.values())


def _weight(weight: Weight | None) -> Weight:
    if weight is None:
        raise SchemeError(
            "sensitivities from gradients are of weights, and this op has none; ask for output_distance"
        )
    return weight


def _key(kind: str, name: str, scheme: OpScheme | None, transforms: Transforms) -> str:
    shown = scheme.model_dump(exclude_defaults=True) if scheme is not None else None
    return f"{kind} {name} {canonical_json([shown, [t.model_dump() for t in transforms]])}"
