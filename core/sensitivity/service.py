"""How much a model suffers when one unit takes one scheme: asked for lazily, computed once, saved.

Ways to ask, from cheap to dear:

* ``weight_error``: the share of an op's output energy that rounding destroys, from the weight, the
  second moments of its input (the Gram matrix X^T X of a few batches) and the scale of its input.
  One pass over the batches in all.
* ``hessian``: the mean trace of an op's Hessian times its squared weight error (HAWQ-V2). At the
  same price.
* ``gradient``: where the adapter offers gradients, what the op's weight error costs at the model's
  outputs to second order, from draws of the gradient (:mod:`~octavo.core.sensitivity.curvature`).
  A few backward passes for all pairs that are asked together.
* ``hessian_trace``: the same with the true trace of the Hessian at the model's outputs (HAWQ-V2),
  by Hutchinson's estimator.
* ``output_distance``: run the model with that unit alone quantized, compare its outputs with the
  float model's. One run over the batches for each pair.
* :meth:`SensitivityService.distances`: the same for whole recipes, transforms included.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from octavo.core.contract.adapter import Batch, Opened
from octavo.core.contract.quantizer import Quantizer
from octavo.core.contract.strategy import Sensitivity
from octavo.core.errors import ConfigError, DataError
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import OpScheme

from .curvature import Curvature
from .hessian_traces import HessianTraces
from .interaction import Around, interaction
from .keys import key_of, recipe_key
from .memory import Memory
from .op_errors import OpErrors, Transforms
from .output_distance import OutputDistance
from .prices import AT_OUTPUTS, Prices
from .saved_scores import identity, read_scores, write_scores
from .score_book import ScoreBook
from .watching import Watched, unwatched

Pair = tuple[str, OpScheme]


class SensitivityService:
    """Implements :class:`~octavo.core.contract.strategy.Sensitivity` over an opened model.

    A probe that fails ends no search: the loss is infinite, what was raised is told once, and it is
    not saved.

    Args:
        opened: The session.
        realizer: Quantizes; what it has quantized for a sensitivity is reused by the trials.
        batches: A few calibration batches.
        path: A JSON file of scores: read if it is there, and written by :meth:`save`.
        note: Told in one line what could not be found out.
        seed: Of what is drawn for ``gradient`` and ``hessian_trace``.
        watched: Told of probes as they go on. Scores that are known are none.
        memory: Knows what an earlier process of the same run found, and keeps what is found; None
            for neither.
        output_metric: How outputs are compared: ``auto`` (what fits the model), ``kl``, ``cosine``
            or ``variance``.

    Attributes:
        batches_run: Batches that candidates were run on, all together: the price of what was asked.
            A backward pass counts as the runs that it costs about as much as.
    """

    def __init__(
        self,
        opened: Opened,
        realizer: Quantizer,
        batches: Sequence[Batch],
        path: Path | None = None,
        *,
        note: Callable[[str], None] = lambda _: None,
        seed: int = 0,
        watched: Watched = unwatched,
        memory: Memory | None = None,
        output_metric: str = "auto",
    ) -> None:
        self.opened = opened
        self.realizer = realizer
        self.batches = tuple(batches)
        self.path = path
        self._watched = watched
        self._book = ScoreBook(memory or Memory(), note)
        self._units = {u.name: u for u in realizer.space.units}
        # What another backend's service answered for this one: known, and not this one's to save.
        self._lent: dict[str, float] = {}
        self._errors = OpErrors(realizer, self.batches)
        self._metric = output_metric
        self._distance = OutputDistance(realizer, self.batches, output_metric)
        self.curvature = Curvature(
            realizer,
            self._distance,
            self.batches,
            self._book.scores,
            seed,
            output_metric,
            watched,
        )
        self.traces = HessianTraces(
            realizer,
            self._errors,
            self.curvature,
            self._book.scores,
            seed,
            output_metric,
            watched,
        )
        self._prices = Prices(self._errors, self._distance, self.curvature, self.traces)
        self._kinds: dict[
            str, Callable[[tuple[str, ...], OpScheme, Transforms], float]
        ] = {
            "weight_error": self._errors.share,
            "output_distance": self._output_distance,
            "hessian": self._errors.curved,
            "hessian_trace": self.traces.traced,
            "gradient": self.curvature.first_order,
        }
        if path is not None and path.exists():
            self._book.scores.update(
                read_scores(path, identity(opened.session, self.batches))
            )

    @property
    def kinds(self) -> tuple[str, ...]:
        """What can be asked for.

        ``gradient`` needs gradients, and ``hessian_trace`` these or the traces of another backend.
        """
        has_gradients = self.curvature.is_there
        has_traces = has_gradients or self.traces.lent is not None
        there = {"gradient": has_gradients, "hessian_trace": has_traces}
        return tuple(kind for kind in self._kinds if there.get(kind, True))

    @property
    def preferred(self) -> str:
        """The best kind here: ``gradient`` where there are some, own or lent, else the distance."""
        return "gradient" if "gradient" in self.kinds else "output_distance"

    @property
    def batches_run(self) -> int:
        """Batches that candidates were run on."""
        found_by = (self._distance, self._errors, self.curvature, self.traces)
        return sum(one.batches_run for one in found_by)

    @property
    def failures(self) -> Mapping[str, str]:
        """What probes raised, by pair or recipe."""
        return self._book.failures

    def __call__(self, kind: str, pairs: Sequence[Pair]) -> Sequence[float]:
        """Return one loss >= 0 for each (unit name, scheme).

        Raises:
            ConfigError: If the kind is not one of :attr:`kinds`, or a unit is unknown.
            DataError: If there are no batches.
        """
        return self._ask(kind, pairs, ())

    def price(
        self, kind: str, pairs: Sequence[Pair], transforms: Transforms = ()
    ) -> int:
        """Return how many runs of a batch asking for these would still cost."""
        self._check(kind, pairs)
        under = transforms or self.realizer.space.required
        unknown: dict[str, dict[str, OpScheme]] = {}
        for name, scheme in pairs:
            if not scheme.is_float:
                own = self._served(kind, name, scheme, under)
                key = self._key(own, name, scheme, under)
                unknown.setdefault(own, {})[key] = scheme
        left: dict[str, list[OpScheme]] = {}
        for own, asked in unknown.items():
            self._book.recall(asked)
            missing = [asked[k] for k in asked if not self._book.is_settled(k)]
            if missing:
                left[own] = missing
        return self._prices.of(left, under)

    def around(self, recipe: Recipe) -> Sensitivity:
        """Return the losses of units as changes of a whole recipe, whatever the kind."""
        return Around(self, self.realizer.space, recipe)

    def interaction(self, recipe: Recipe) -> float:
        """Return the measured distance of a whole recipe over the sum of its units' losses.

        Off 1 by more than a fifth: losses are better taken :meth:`around` the recipe.
        """
        return interaction(self, self.realizer.space, recipe)

    def under(self, transforms: Transforms) -> Sensitivity:
        """Return the service for the model after ``transforms``."""
        return lambda kind, pairs: self._ask(kind, pairs, transforms)

    def known(
        self, unit: str, scheme: OpScheme, transforms: Transforms = ()
    ) -> dict[str, float]:
        """Return kind -> loss of what was asked already, finite ones alone; nothing is computed.

        What was asked without transforms, or under the required ones alone, stands for what was not
        asked under more of them.
        """
        found: dict[str, float] = {}
        for under in (self.realizer.space.required, transforms):
            for kind in self._kinds:
                key = self._key(kind, unit, scheme, under)
                loss = self._book.scores.get(key, self._lent.get(key, float("inf")))
                if np.isfinite(loss):
                    found[kind] = loss
        return found

    def lend(
        self,
        kind: str,
        unit: str,
        scheme: OpScheme,
        transforms: Transforms,
        loss: float,
    ) -> None:
        """Let it know what another backend's service answered for a unit's counterpart."""
        under = transforms or self.realizer.space.required
        self._lent[self._key(kind, unit, scheme, under)] = loss

    def distances(self, recipes: Sequence[Recipe]) -> Sequence[float]:
        """Return the output distance of each whole recipe; infinite where none can be made."""
        keys = [recipe_key(self._metric, recipe) for recipe in recipes]
        wanted = {
            key: partial(self._distance.of, recipe)
            for key, recipe in zip(keys, recipes, strict=True)
        }
        self._book.recall(wanted)
        self._book.find_out(wanted, self._watched)
        return [self._book.loss(key) for key in keys]

    def _ask(
        self, kind: str, pairs: Sequence[Pair], transforms: Transforms
    ) -> Sequence[float]:
        self._check(kind, pairs)
        # No recipe of the space goes without what it requires.
        transforms = transforms or self.realizer.space.required
        wanted: dict[str, Callable[[], float]] = {}
        drawn: dict[str, Callable[[], float]] = {}
        keys: list[str | None] = []
        for name, scheme in pairs:
            if scheme.is_float:
                keys.append(None)
                continue
            own = self._served(kind, name, scheme, transforms)
            key = self._key(own, name, scheme, transforms)
            keys.append(key)
            group = drawn if own == "gradient" else wanted
            compute = self._kinds[own]
            group[key] = partial(compute, self._units[name].ops, scheme, transforms)
        if drawn:
            self._book.recall(drawn)
            self._prepare_gradients(kind, pairs, transforms)
            # What they need was told as it went on.
            self._book.find_out(drawn, unwatched)
        self._book.recall(wanted)
        self._book.find_out(wanted, self._watched)
        return [0.0 if key is None else self._book.loss(key) for key in keys]

    def _served(
        self, kind: str, name: str, scheme: OpScheme, transforms: Transforms
    ) -> str:
        """Return the kind that answers for a pair; where gradients cannot, the distance does.

        Under ``auto`` that is so for rounded inputs too: what they cost shows in gradients behind
        poolings and few outputs to a factor of 2 only, and modes are compared with each other.
        """
        asked = self.preferred if kind == "auto" else kind
        if asked != "gradient":
            return asked
        unit = self._units[name]
        can_tell = self.curvature.serves(unit.ops, scheme, transforms)
        rounds_inputs = kind == "auto" and scheme.input is not None
        return asked if can_tell and not rounds_inputs else "output_distance"

    def _key(
        self, kind: str, name: str, scheme: OpScheme, transforms: Transforms
    ) -> str:
        by = f"{kind}/{self._metric}" if kind in AT_OUTPUTS else kind
        return key_of(by, name, scheme, transforms)

    def _check(self, kind: str, pairs: Sequence[Pair]) -> None:
        if kind not in (*self.kinds, "auto"):
            raise ConfigError(
                f"there is no sensitivity {kind!r} on {self.opened.name}; "
                f"there are {', '.join(self.kinds)}"
            )
        for name, _ in pairs:
            if name not in self._units:
                raise ConfigError(f"the space has no unit {name!r}")
        asks_for_probes = any(not scheme.is_float for _, scheme in pairs)
        if asks_for_probes and not self.batches:
            raise DataError(
                "sensitivities need calibration batches: give calibration data, "
                "or a strategy that asks for none"
            )

    def _prepare_gradients(
        self, kind: str, pairs: Sequence[Pair], transforms: Transforms
    ) -> None:
        """Find what the gradients of all pairs need in one pass."""
        wanted = []
        for name, scheme in pairs:
            own = self._served(kind, name, scheme, transforms)
            key = self._key(own, name, scheme, transforms)
            is_drawn = own == "gradient" and not scheme.is_float
            if is_drawn and not self._book.is_settled(key):
                wanted.append((self._units[name].ops, scheme))
        # Where this fails, each pair is tried by itself, and fails by itself.
        with contextlib.suppress(Exception):
            self.curvature.prepare(wanted, transforms)

    def _output_distance(
        self, ops: tuple[str, ...], scheme: OpScheme, transforms: Transforms
    ) -> float:
        space = self.realizer.space
        recipe = Recipe(space.schemes(ops, scheme), transforms, space.backend)
        return self._distance.of(recipe)

    def save(self, path: Path | None = None) -> None:
        """Write every score as JSON.

        Other budgets and goals of the same model and data start from it.

        Raises:
            ConfigError: If there is no path.
            StoreError: If the file cannot be written.
        """
        target = path or self.path
        if target is None:
            raise ConfigError(
                "SensitivityService.save needs a path, here or when it is made"
            )
        write_scores(
            target, identity(self.opened.session, self.batches), self._book.scores
        )
