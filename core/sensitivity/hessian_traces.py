"""Losses of units from the trace of the Hessian at the model's outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence

from octavo.core.contract.quantizer import Quantizer
from octavo.core.values.graph import Weight
from octavo.core.values.scheme import OpScheme

from .curvature import Curvature, without_weight
from .draws import DRAWS, traces
from .keys import key_of
from .op_errors import OpErrors, Transforms, WeightError
from .watching import Watched, unwatched

PRODUCT_RUNS = 6
"""What a Hessian-vector product is counted as: runs of the model that cost about as much."""


class HessianTraces:
    """Losses of units from traces.

    Args:
        realizer: Quantizes, and knows the model.
        errors: Each op's own errors: what rounding inputs adds, compared with the weight's part.
        curvature: Knows where gradients are taken.
        scores: Where traces are kept, by a key of text.
        seed: Of what is drawn.
        asked: How outputs are to be compared: a part of the keys.
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
        curvature: Curvature,
        scores: MutableMapping[str, float],
        seed: int,
        asked: str,
        watched: Watched = unwatched,
    ) -> None:
        self.batches_run = 0
        self.lent: Callable[[Transforms], Mapping[str, float]] | None = None
        self._realizer = realizer
        self._errors = errors
        self._curvature = curvature
        self._scores = scores
        self._seed = seed
        self._asked = asked
        self._watched = watched

    def price(self, transforms: Transforms) -> int:
        """Return the runs of a batch that the traces still cost."""
        keys = [self._key(name, transforms) for name in self._tunable_weights()]
        if self.lent is None and all(key in self._scores for key in keys):
            return 0
        return PRODUCT_RUNS * DRAWS * len(self._errors.batches)

    def traced(
        self, ops: Sequence[str], scheme: OpScheme, transforms: Transforms
    ) -> float:
        """Return half the mean trace of the Hessian at the model's outputs times the squared error.

        That is HAWQ-V2's eq. 4, in the unit of the distance. What rounding an op's input adds is
        reckoned in as if it hurt like the same energy of weight error.

        Raises:
            SchemeError: If an op has no weight.
        """
        traces_of = self.lent or self.traces
        found = traces_of(transforms)

        def loss(error: WeightError, weight: Weight) -> float:
            mean_trace = found[weight.name] / weight.size
            return 0.5 * mean_trace * error.square * error.with_input

        largest: dict[str, float] = {}
        for error in self._errors.of(ops, scheme, transforms):
            if error.weight is None:
                raise without_weight()
            name = error.weight.name
            largest[name] = max(loss(error, error.weight), largest.get(name, 0.0))
        return sum(largest.values())

    def traces(self, transforms: Transforms = ()) -> Mapping[str, float]:
        """Return the trace of each tunable weight's block of H, by name; computed once."""
        names = self._tunable_weights()
        keys = {name: self._key(name, transforms) for name in names}
        missing = [name for name, key in keys.items() if key not in self._scores]
        if missing:
            where = self._curvature.where(transforms)
            with self._watched(DRAWS) as begin_draw:
                found = traces(where, missing, self._seed, begin_draw)
            self.batches_run += PRODUCT_RUNS * DRAWS * len(self._errors.batches)
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

    def _key(self, name: str, transforms: Transforms) -> str:
        return key_of(f"trace/{self._asked}", name, None, transforms)
