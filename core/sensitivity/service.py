"""How much a model suffers when one unit takes one scheme: asked for lazily, computed once, saved.

Ways to ask, from cheap to dear:

* ``weight_error``: the share of an op's output energy that rounding destroys, from the weight, the second moments of
  its input (the Gram matrix X^T X of a few batches) and the scale of its input. One pass over the batches in all.
* ``hessian``: the mean trace of an op's Hessian times its squared weight error (HAWQ-V2). At the same price.
* ``gradient``: where the adapter offers gradients, what the op's weight error costs at the model's outputs to second order,
  from draws of the gradient (:mod:`~octavo.core.sensitivity.curvature`). A few backward passes for all pairs that are asked together.
* ``hessian_trace``: the same with the true trace of the Hessian at the model's outputs (HAWQ-V2), by Hutchinson's estimator.
* ``output_distance``: run the model with that unit alone quantized, compare its outputs with the float model's. One
  run over the batches for each pair.
* :meth:`SensitivityService.distances`: the same for whole recipes, transforms included.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from octavo.core.calibration.data import digest_leaf
from octavo.core.contract.adapter import Batch, Candidate, Opened
from octavo.core.contract.strategy import Sensitivity
from octavo.core.errors import ConfigError, DataError, SchemeError, StoreError, raised_as, said
from octavo.core.quantizing.realize import Realizer
from octavo.core.system.textfiles import read_text, write_text
from octavo.core.values.calls import parts
from octavo.core.values.json_form import canonical_json
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import OpScheme
from octavo.core.values.trees import leaves

from .curvature import Curvature
from .op_errors import OpErrors, Transforms

Pair = tuple[str, OpScheme]
Runner = Callable[[Candidate], Iterator[tuple[np.ndarray, ...]]]


class SensitivityService:
    """Implements :class:`~octavo.core.contract.strategy.Sensitivity` over an opened model.

    A probe that fails ends no search: the loss is infinite, what was raised is told once, and it is not saved.

    Args:
        opened: The session.
        realizer: Quantizes; what it has quantized for a sensitivity is reused by the trials.
        batches: A few calibration batches.
        path: A JSON file of scores: read if it is there, and written by :meth:`save`.
        note: Told in one line what could not be found out.
        seed: Of what is drawn for ``gradient`` and ``hessian_trace``.

    Attributes:
        batches_run: Batches that candidates were run on, all together: the price of what was asked. A backward pass counts
            as the runs that it costs about as much as.
        failures: What probes raised, by pair or recipe.
    """

    def __init__(
        self,
        opened: Opened,
        realizer: Realizer,
        batches: Sequence[Batch],
        path: Path | None = None,
        *,
        note: Callable[[str], None] = lambda _: None,
        seed: int = 0,
    ) -> None:
        self.opened = opened
        self.realizer = realizer
        self.batches = tuple(batches)
        self.path = path
        self.failures: dict[str, str] = {}
        self._note = note
        self._runs = 0
        self._units = {u.name: u for u in realizer.space.units}
        self._scores: dict[str, float] = {}
        self._errors = OpErrors(realizer, self.batches)
        self.curvature = Curvature(realizer, self._errors, self.batches, self._scores, seed)
        self._reference: list[tuple[np.ndarray, ...]] | None = None
        self._runner: tuple[Transforms, Runner] | None = None
        self._kinds: dict[str, Callable[[tuple[str, ...], OpScheme, Transforms], float]] = {
            "weight_error": self._weight_error,
            "output_distance": self._output_distance,
            "hessian": self._hessian,
            "hessian_trace": self.curvature.traced,
            "gradient": self.curvature.first_order,
        }
        if path is not None and path.exists():
            self._scores.update(self._read(path))

    @property
    def kinds(self) -> tuple[str, ...]:
        """What can be asked for. ``gradient`` needs gradients, and ``hessian_trace`` these or the traces of another backend."""
        own = "gradients" in self.opened.capability.features
        there = {"gradient": own, "hessian_trace": own or self.curvature.lent is not None}
        return tuple(k for k in self._kinds if there.get(k, True))

    @property
    def batches_run(self) -> int:
        """Batches that candidates were run on."""
        return self._runs + self._errors.batches_run + self.curvature.batches_run

    def __call__(self, kind: str, pairs: Sequence[Pair]) -> Sequence[float]:
        """Return one loss >= 0 for each (unit name, scheme).

        Raises:
            ConfigError: If the kind is not one of :attr:`kinds`, or a unit is unknown.
            DataError: If there are no batches.
        """
        return self._ask(kind, pairs, ())

    def under(self, transforms: Transforms) -> Sensitivity:
        """Return the service for the model after ``transforms``."""
        return lambda kind, pairs: self._ask(kind, pairs, transforms)

    def distances(self, recipes: Sequence[Recipe]) -> Sequence[float]:
        """Return the output distance of each whole recipe; infinite where it cannot be carried out."""
        return [self._cached(f"recipe {r.digest}", lambda r=r: self._distance(r)) for r in recipes]  # type: ignore[misc]

    def _ask(self, kind: str, pairs: Sequence[Pair], transforms: Transforms) -> Sequence[float]:
        if kind not in self.kinds:
            raise ConfigError(
                f"there is no sensitivity {kind!r} on {self.opened.name}; there are {', '.join(self.kinds)}"
            )
        for name, _ in pairs:
            if name not in self._units:
                raise ConfigError(f"the space has no unit {name!r}")
        asked = [(n, s) for n, s in pairs if not s.is_float]
        if asked and not self.batches:
            raise DataError(
                "sensitivities need calibration batches: give calibration data, or a strategy that asks for none"
            )
        if kind == "gradient":
            self._prepare(
                [(n, s) for n, s in asked if _key(kind, n, s, transforms) not in self._scores],
                transforms,
            )
        compute = self._kinds[kind]
        return [
            0.0
            if scheme.is_float
            else self._cached(
                _key(kind, name, scheme, transforms),
                lambda name=name, scheme=scheme: compute(self._units[name].ops, scheme, transforms),  # type: ignore[misc]
            )
            for name, scheme in pairs
        ]

    def _cached(self, key: str, compute: Callable[[], float]) -> float:
        if key in self.failures:
            return float("inf")
        if key not in self._scores:
            try:
                value = compute()
            except Exception as error:
                return self._failed(key, error)
            self._scores[key] = float(value) if np.isfinite(value) else float("inf")
        return self._scores[key]

    def _failed(self, key: str, error: Exception) -> float:
        text = f"{type(error).__name__}: {error}"
        if text not in self.failures.values():
            self._note(f"sensitivity {key} is taken as infinite: {text}")
        self.failures[key] = text
        return float("inf")

    def _prepare(self, pairs: Sequence[Pair], transforms: Transforms) -> None:
        """Find what the gradients of all pairs need in one pass; where that fails each pair is tried, and fails, by itself."""
        with contextlib.suppress(Exception):
            self.curvature.prepare([(self._units[n].ops, s) for n, s in pairs], transforms)

    # Kinds

    def _weight_error(
        self, ops: tuple[str, ...], scheme: OpScheme, transforms: Transforms
    ) -> float:
        return sum(e.share for e in self._errors.of(ops, scheme, transforms))

    def _hessian(self, ops: tuple[str, ...], scheme: OpScheme, transforms: Transforms) -> float:
        return sum(e.curved for e in self._errors.of(ops, scheme, transforms))

    # Whole-model outputs

    def _output_distance(
        self, ops: tuple[str, ...], scheme: OpScheme, transforms: Transforms
    ) -> float:
        space = self.realizer.space
        return self._distance(Recipe(space.schemes(ops, scheme), transforms, space.backend))

    def _distance(self, recipe: Recipe) -> float:
        """Return ||y - y0||^2 / ||y0 - mean y0||^2 over the batches, the mean over the model's float outputs."""
        references = self._references()
        try:
            candidate = self.realizer.candidate(recipe, draft=True)
        except SchemeError:
            return float("inf")
        if self._runner is None or self._runner[0] != recipe.transforms:
            self._runner = (
                recipe.transforms,
                self.realizer.session(recipe.transforms).runner(self.batches),
            )
        error, power = 0.0, 0.0
        for outputs, expected in zip(self._runner[1](candidate), references, strict=True):
            self._runs += 1
            for y, y0 in zip(outputs, expected, strict=True):
                if np.issubdtype(y0.dtype, np.floating):
                    error += float(np.square(y.astype(np.float64) - y0).mean())
                    power += float(np.square(y0 - y0.mean()).mean())
        return error / power if power else error

    def _references(self) -> list[tuple[np.ndarray, ...]]:
        if self._reference is None:
            reference = self.opened.session.reference()
            self._reference = [
                tuple(np.asarray(y) for y in reference.run(batch)) for batch in self.batches
            ]
        return self._reference

    # Keeping

    def save(self, path: Path | None = None) -> None:
        """Write every score as JSON; other budgets and goals of the same model and data start from it.

        Raises:
            ConfigError: If there is no path.
            StoreError: If the file cannot be written.
        """
        target = path or self.path
        if target is None:
            raise ConfigError("SensitivityService.save needs a path, here or when it is made")
        raw = {
            "schema": 1,
            "of": self._identity(),
            "scores": {k: v if np.isfinite(v) else None for k, v in self._scores.items()},
        }
        with raised_as(StoreError, f"{target} cannot be written"):
            write_text(target, json.dumps(raw, indent=1))

    def _identity(self) -> str:
        return canonical_json([self.opened.session.fingerprint(), data_digest(self.batches)])

    def _read(self, path: Path) -> Mapping[str, float]:
        try:
            raw: Any = json.loads(read_text(path))
            scores = {
                str(k): float("inf") if v is None else float(v) for k, v in raw["scores"].items()
            }
            schema, of = raw["schema"], raw["of"]
            if wrong := [key for key, loss in scores.items() if not loss >= 0]:
                raise ValueError(f"the loss of {wrong[0]} is {scores[wrong[0]]}")
        except Exception as error:  # a damaged file fails in many ways
            raise StoreError(
                f"{path} holds no sensitivities: {said(error)}; delete it, or name another file"
            ) from error
        if schema != 1 or of != self._identity():
            raise StoreError(
                f"{path} was made for another model, other batches or by another version; name another file"
            )
        return scores


def check_place(path: Path) -> None:
    """Make sure that sensitivities can be written at the end of a run, before it begins.

    Raises:
        ConfigError: If the folder of their file is not there, or cannot be written.
    """
    folder = path.expanduser().absolute().parent
    if not folder.is_dir():
        raise ConfigError(
            f"sensitivities: there is no folder {folder}; make it, or name a file elsewhere"
        )
    if not os.access(folder, os.W_OK):
        raise ConfigError(
            f"sensitivities: {folder} cannot be written; name a file in a writable folder"
        )


def data_digest(batches: Sequence[Batch]) -> str:
    """Content digest of batches, 16 hex digits."""
    digest = hashlib.sha256()
    for batch in batches:
        args, kwargs = parts(batch)
        for name, value in (*enumerate(args), *sorted(kwargs.items())):
            for path, leaf in leaves(value, str(name)):
                digest_leaf(digest, path, leaf, between=" ")
    return digest.hexdigest()[:16]


def _key(kind: str, name: str, scheme: OpScheme, transforms: Transforms) -> str:
    return f"{kind} {name} {canonical_json([scheme.model_dump(exclude_defaults=True), [t.model_dump() for t in transforms]])}"
