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
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from octavo.core.contract.adapter import Batch, Opened
from octavo.core.contract.quantizer import Quantizer
from octavo.core.contract.strategy import Sensitivity
from octavo.core.errors import ConfigError, DataError
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import OpScheme

from .curvature import DRAWS, GRADIENT_RUNS, PRODUCT_RUNS, Curvature, Watched, unwatched
from .interaction import Around, interaction
from .keys import key_of, recipe_key
from .memory import Memory
from .op_errors import OpErrors, Transforms
from .output_distance import OutputDistance
from .saved_scores import identity, read_scores, write_scores

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

    Attributes:
        batches_run: Batches that candidates were run on, all together: the price of what was asked.
            A backward pass counts as the runs that it costs about as much as.
        failures: What probes raised, by pair or recipe.
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
    ) -> None:
        self.opened = opened
        self.realizer = realizer
        self.batches = tuple(batches)
        self.path = path
        self.failures: dict[str, str] = {}
        self._note = note
        self._watched = watched
        self._memory = memory or Memory()
        self._units = {u.name: u for u in realizer.space.units}
        self._scores: dict[str, float] = {}
        # What another backend's service answered for this one: known, and not this one's to save.
        self._lent: dict[str, float] = {}
        self._errors = OpErrors(realizer, self.batches)
        self.curvature = Curvature(
            realizer, self._errors, self.batches, self._scores, seed, watched
        )
        self._distance = OutputDistance(opened.session, realizer, self.batches)
        self._kinds: dict[
            str, Callable[[tuple[str, ...], OpScheme, Transforms], float]
        ] = {
            "weight_error": self._weight_error,
            "output_distance": self._output_distance,
            "hessian": self._hessian,
            "hessian_trace": self.curvature.traced,
            "gradient": self.curvature.first_order,
        }
        if path is not None and path.exists():
            self._scores.update(
                read_scores(path, identity(opened.session, self.batches))
            )

    @property
    def kinds(self) -> tuple[str, ...]:
        """What can be asked for.

        ``gradient`` needs gradients, and ``hessian_trace`` these or the traces of another backend.
        """
        has_gradients = "gradients" in self.opened.capability.features
        has_traces = has_gradients or self.curvature.lent is not None
        there = {"gradient": has_gradients, "hessian_trace": has_traces}
        return tuple(kind for kind in self._kinds if there.get(kind, True))

    @property
    def preferred(self) -> str:
        """The best kind here: ``gradient`` where there are gradients, else the distance."""
        return "gradient" if "gradient" in self.kinds else "output_distance"

    @property
    def batches_run(self) -> int:
        """Batches that candidates were run on."""
        by_gradients = self.curvature.batches_run
        return self._distance.batches_run + self._errors.batches_run + by_gradients

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
        kind = self._settled(kind)
        self._check(kind, pairs)
        under = transforms or self.realizer.space.required
        keys = {key_of(kind, name, s, under) for name, s in pairs if not s.is_float}
        self._recall(keys)
        unknown = sum(
            key not in self._scores and key not in self.failures for key in keys
        )
        if not unknown:
            return 0
        runs_of_each = {
            "output_distance": unknown,
            "gradient": GRADIENT_RUNS * DRAWS,
            "hessian_trace": PRODUCT_RUNS * DRAWS,
        }
        return runs_of_each.get(kind, 1) * len(self.batches)

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
                key = key_of(kind, unit, scheme, under)
                loss = self._scores.get(key, self._lent.get(key, float("inf")))
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
        self._lent[key_of(kind, unit, scheme, under)] = loss

    def distances(self, recipes: Sequence[Recipe]) -> Sequence[float]:
        """Return the output distance of each whole recipe; infinite where none can be made."""
        wanted = {recipe_key(r): partial(self._distance.of, r) for r in recipes}
        self._recall(wanted)
        self._find_out(wanted)
        return [self._known(recipe_key(recipe)) for recipe in recipes]

    def _ask(
        self, kind: str, pairs: Sequence[Pair], transforms: Transforms
    ) -> Sequence[float]:
        kind = self._settled(kind)
        self._check(kind, pairs)
        # No recipe of the space goes without what it requires.
        transforms = transforms or self.realizer.space.required
        compute = self._kinds[kind]
        wanted: dict[str, Callable[[], float]] = {}
        keys: list[str | None] = []
        for name, scheme in pairs:
            if scheme.is_float:
                keys.append(None)
                continue
            key = key_of(kind, name, scheme, transforms)
            keys.append(key)
            wanted[key] = partial(compute, self._units[name].ops, scheme, transforms)
        self._recall(wanted)
        if kind == "gradient":
            self._prepare_gradients(pairs, transforms)
        self._find_out(wanted)
        return [0.0 if key is None else self._known(key) for key in keys]

    def _settled(self, kind: str) -> str:
        return self.preferred if kind == "auto" else kind

    def _check(self, kind: str, pairs: Sequence[Pair]) -> None:
        if kind not in self.kinds:
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

    def _prepare_gradients(self, pairs: Sequence[Pair], transforms: Transforms) -> None:
        """Find what the gradients of all pairs need in one pass."""
        wanted = []
        for name, scheme in pairs:
            key = key_of("gradient", name, scheme, transforms)
            if not scheme.is_float and key not in self._scores:
                wanted.append((self._units[name].ops, scheme))
        # Where this fails, each pair is tried by itself, and fails by itself.
        with contextlib.suppress(Exception):
            self.curvature.prepare(wanted, transforms)

    def _recall(self, keys: Iterable[str]) -> None:
        """Take in what an earlier process of the same run has found."""
        for key in keys:
            if key not in self._scores:
                loss = self._memory.recall(key)
                if loss is not None:
                    self._scores[key] = loss

    def _find_out(self, wanted: Mapping[str, Callable[[], float]]) -> None:
        """Compute what is not known yet."""
        missing = [
            key
            for key in wanted
            if key not in self._scores and key not in self.failures
        ]
        if not missing:
            return
        try:
            with self._watched(len(missing)) as begin_probe:
                for key in missing:
                    begin_probe()
                    self._probe(key, wanted[key])
        finally:
            # Also where time runs out in the middle: the next process goes on from there.
            found = {key: self._scores[key] for key in missing if key in self._scores}
            self._memory.learn(found)

    def _probe(self, key: str, compute: Callable[[], float]) -> None:
        """Compute one score."""
        try:
            value = compute()
        except Exception as error:
            self._failed(key, error)
        else:
            is_finite = np.isfinite(value)
            self._scores[key] = float(value) if is_finite else float("inf")

    def _known(self, key: str) -> float:
        """Return a loss that was found out; infinite where that failed."""
        return self._scores.get(key, float("inf"))

    def _failed(self, key: str, error: Exception) -> None:
        text = f"{type(error).__name__}: {error}"
        if text not in self.failures.values():
            self._note(f"sensitivity {key} is taken as infinite: {text}")
        self.failures[key] = text

    def _weight_error(
        self, ops: tuple[str, ...], scheme: OpScheme, transforms: Transforms
    ) -> float:
        return sum(e.share for e in self._errors.of(ops, scheme, transforms))

    def _hessian(
        self, ops: tuple[str, ...], scheme: OpScheme, transforms: Transforms
    ) -> float:
        return sum(e.curved for e in self._errors.of(ops, scheme, transforms))

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
        write_scores(target, identity(self.opened.session, self.batches), self._scores)
