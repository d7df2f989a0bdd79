"""How much a model suffers when one unit takes one scheme: asked for lazily, computed once, saved.

Ways to ask, from cheap to dear:

* ``weight_error``: the share of an op's output energy that rounding destroys, from the weight, the second moments of
  its input (the Gram matrix X^T X of a few batches) and the scale of its input. One pass over the batches in all.
* ``hessian``: the mean trace of an op's Hessian times its squared weight error (HAWQ-V2). At the same price.
* ``output_distance``: run the model with that unit alone quantized, compare its outputs with the float model's. One
  run over the batches for each pair.
* :meth:`SensitivityService.distances`: the same for whole recipes, transforms included.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from .adapter import Batch, Opened, Session
from .calibrators.features import FeatureObserver, Gram
from .errors import ConfigError, DataError, SchemeError, StoreError
from .evaluation import to_numpy
from .moments import Moments, SecondMoments, energy, rounding_noise, second_moments, weight_matrix
from .numerics.affine import Array
from .numerics.rows import Rows, rows_of
from .realize import Realizer
from .recipe import Recipe
from .scheme import OpScheme, PartChoice, canonical_json
from .strategy import Sensitivity
from .textfiles import read_text

Transforms = tuple[PartChoice, ...]
Rounded = tuple[float, np.ndarray, np.ndarray | None, float]
WIDEST_GRAM = 4096  # features; wider inputs are described by their second moments alone (64 MiB of float32 here)


@runtime_checkable
class RecipeSensitivity(Sensitivity, Protocol):
    """A service that can also judge whole recipes without the score function."""

    def distances(self, recipes: Sequence[Recipe]) -> Sequence[float]:
        """Return the output distance of each whole recipe."""

    def under(self, transforms: Transforms) -> Sensitivity:
        """Return the service for units of a model to which the transforms were applied first."""


@dataclass
class _Observed:
    """What one pass over the batches shows."""

    moments: dict[str, Moments] = field(default_factory=dict)
    features: dict[tuple[str, Rows], FeatureObserver] = field(default_factory=dict)


class SensitivityService:
    """Implements :class:`~octavo.core.strategy.Sensitivity` over an opened model.

    Args:
        opened: The session.
        realizer: Quantizes; what it has quantized for a sensitivity is reused by the trials.
        batches: A few calibration batches.
        path: A JSON file of scores: read if it is there, and written by :meth:`save`.

    Attributes:
        batches_run: Batches that candidates were run on, all together: the price of what was asked.
    """

    def __init__(self, opened: Opened, realizer: Realizer, batches: Sequence[Batch], path: Path | None = None) -> None:
        self.opened = opened
        self.realizer = realizer
        self.batches = tuple(batches)
        self.path = path
        self.batches_run = 0
        self._units = {u.name: u for u in realizer.space.units}
        self._scores: dict[str, float] = {}
        self._observed: dict[Transforms, _Observed] = {}
        self._reference: list[tuple[np.ndarray, ...]] | None = None
        self._kinds: dict[str, Callable[[tuple[str, ...], OpScheme, Transforms], float]] = {
            "weight_error": self._weight_error,
            "output_distance": self._output_distance,
            "hessian": self._hessian,
        }
        if path is not None and path.exists():
            self._scores.update(self._read(path))

    def __call__(self, kind: str, pairs: Sequence[tuple[str, OpScheme]]) -> Sequence[float]:
        """Return one loss >= 0 for each (unit name, scheme).

        Raises:
            ConfigError: If the kind is not one of ``weight_error``, ``hessian``, ``output_distance``, or a unit is unknown.
            DataError: If there are no batches.
        """
        return self._ask(kind, pairs, ())

    def under(self, transforms: Transforms) -> Sensitivity:
        """Return the service for the model after ``transforms``."""
        return lambda kind, pairs: self._ask(kind, pairs, transforms)

    def distances(self, recipes: Sequence[Recipe]) -> Sequence[float]:
        """Return the output distance of each whole recipe; infinite where it cannot be carried out."""
        return [self._cached(f"recipe {r.digest}", lambda r=r: self._distance(r)) for r in recipes]  # type: ignore[misc]

    def _ask(self, kind: str, pairs: Sequence[tuple[str, OpScheme]], transforms: Transforms) -> Sequence[float]:
        if kind not in self._kinds:
            raise ConfigError(f"there is no sensitivity {kind!r}; there are {', '.join(self._kinds)}")
        found = []
        for name, scheme in pairs:
            if name not in self._units:
                raise ConfigError(f"the space has no unit {name!r}")
            if scheme.is_float:
                found.append(0.0)
                continue
            key = f"{kind} {name} {canonical_json([scheme.model_dump(exclude_defaults=True), [t.model_dump() for t in transforms]])}"
            ops = self._units[name].ops
            found.append(self._cached(key, lambda ops=ops, scheme=scheme: self._kinds[kind](ops, scheme, transforms)))  # type: ignore[misc]
        return found

    def _cached(self, key: str, compute: Callable[[], float]) -> float:
        if key not in self._scores:
            value = compute()
            self._scores[key] = float(value) if np.isfinite(value) else float("inf")
        return self._scores[key]

    # Whole-model outputs

    def _output_distance(self, ops: tuple[str, ...], scheme: OpScheme, transforms: Transforms) -> float:
        return self._distance(Recipe(dict.fromkeys(ops, scheme), transforms, self.realizer.space.backend))

    def _distance(self, recipe: Recipe) -> float:
        """Return ||y - y0||^2 / ||y0 - mean y0||^2 over the batches, the mean over the model's float outputs."""
        references = self._references()
        try:
            candidate = self.realizer.candidate(recipe)
        except SchemeError:
            return float("inf")
        error, power = 0.0, 0.0
        for batch, expected in zip(self.batches, references, strict=True):
            self.batches_run += 1
            for y, y0 in zip(candidate.run(batch), expected, strict=True):
                if np.issubdtype(y0.dtype, np.floating):
                    error += float(np.square(y.astype(np.float64) - y0).mean())
                    power += float(np.square(y0 - y0.mean()).mean())
        return error / power if power else error

    def _references(self) -> list[tuple[np.ndarray, ...]]:
        if self._reference is None:
            if not self.batches:
                raise DataError("sensitivities need calibration batches: give calibration data, or a strategy that asks for none")
            reference = self.opened.session.reference()
            self._reference = [tuple(np.asarray(y) for y in reference.run(batch)) for batch in self.batches]
        return self._reference

    # Weights and input noise

    def _weight_error(self, ops: tuple[str, ...], scheme: OpScheme, transforms: Transforms) -> float:
        """Return the sum over the unit's ops of (energy that rounding weight and input adds) / (energy of the output)."""
        return sum(lost + energy(error, second) / whole for lost, error, second, whole in self._rounded(ops, scheme, transforms))

    def _hessian(self, ops: tuple[str, ...], scheme: OpScheme, transforms: Transforms) -> float:
        """Return the mean trace of each op's Hessian times its squared weight error, plus what rounding its input adds.

        HAWQ-V2 (Dong et al. 2020, eq. 4) with the Hessian of the op's own squared output error, 2 X^T X / rows, the one that
        OBQ and GPTQ use; it needs no gradients. Each op's is divided by the energy of its output, so that they compare.
        """
        total = 0.0
        for lost, error, second, whole in self._rounded(ops, scheme, transforms):
            diagonal = np.ones(1) if second is None else second if second.ndim == 2 else np.diagonal(second, axis1=1, axis2=2)
            total += lost + 2.0 * float(diagonal.mean()) * float(np.square(error).sum()) / whole
        return total

    def _rounded(self, ops: tuple[str, ...], scheme: OpScheme, transforms: Transforms) -> Iterator[Rounded]:
        """Yield for each weight: share of its product that input rounding destroys, its error, second moments, the product's energy."""
        parameters = self.realizer.parameters(Recipe(dict.fromkeys(ops, scheme), transforms, self.realizer.space.backend))
        session = self.realizer.session(transforms)
        observed = self._observe(session, transforms)
        for name in ops:
            op, given = self.opened.view.by_name[name], parameters.get(name)
            if given is None:
                continue
            moments = [observed.moments[v] for v in op.inputs if v in observed.moments]
            noises = [rounding_noise(scheme, m, p) for m, p in zip_longest(moments, given.inputs[: len(moments)])]
            if op.weight is None or given.weight is None:
                share = sum(noise / m.power for noise, m in zip(noises, moments, strict=True) if m.power)
                yield share, np.zeros((1, 1)), None, 1.0
                continue
            for held, quantized in zip(op.weights, (given.weight, *given.further), strict=True):
                weight = weight_matrix(session.tensor(held.name), held)
                error = weight - weight_matrix(quantized.dequantize(), held)
                rows = rows_of(op)
                second = second_moments(observed.features[op.inputs[0], rows]) if rows is not None else None
                if whole := energy(weight, second):
                    lost = noises[0] * float(np.square(weight).sum()) if noises and rows is not None else 0.0
                    yield lost / whole, error, second, whole

    def _observe(self, session: Session, transforms: Transforms) -> _Observed:
        """Run the batches once and keep the moments of every input of a tunable op."""
        if transforms not in self._observed:
            observed = _Observed()
            for op in (self.opened.view.by_name[name] for unit in self.realizer.space.tunable for name in unit.ops):
                observed.moments.update((value, Moments()) for value in op.inputs)
                rows = rows_of(op)
                if rows is not None and op.weight is not None:
                    width = op.weight.size // max(1, op.weight.shape[op.weight.channel_axis])
                    observed.features[op.inputs[0], rows] = (Gram if width <= WIDEST_GRAM else SecondMoments)(rows)

            def sink(value: str, x: Array) -> None:
                array = to_numpy(x)
                observed.moments[value].update(array)
                for (name, _), observer in observed.features.items():
                    if name == value:
                        observer.update(array)

            self.batches_run += session.observe(self.batches, tuple(observed.moments), sink)
            self._observed[transforms] = observed
        return self._observed[transforms]

    # Keeping

    def save(self, path: Path | None = None) -> None:
        """Write every score as JSON; other budgets and goals of the same model and data start from it.

        Raises:
            ConfigError: If there is no path.
        """
        target = path or self.path
        if target is None:
            raise ConfigError("SensitivityService.save needs a path, here or when it is made")
        raw = {"schema": 1, "of": self._identity(), "scores": {k: v if np.isfinite(v) else None for k, v in self._scores.items()}}
        partial = target.with_name(f".{target.name}.partial")
        partial.write_text(json.dumps(raw, indent=1), encoding="utf-8")
        partial.replace(target)

    def _identity(self) -> str:
        return canonical_json([self.opened.session.fingerprint(), data_digest(self.batches)])

    def _read(self, path: Path) -> Mapping[str, float]:
        try:
            raw: Any = json.loads(read_text(path))
            scores = {str(k): float("inf") if v is None else float(v) for k, v in raw["scores"].items()}
            schema, of = raw["schema"], raw["of"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(f"{path} holds no sensitivities: {error!r}; delete it, or name another file") from error
        if schema != 1 or of != self._identity():
            raise StoreError(f"{path} was made for another model, other batches or by another version; name another file")
        return scores


def data_digest(batches: Sequence[Batch]) -> str:
    """Content digest of batches, 16 hex digits."""
    digest = hashlib.sha256()
    for batch in batches:
        items = sorted(batch.items()) if isinstance(batch, Mapping) else list(enumerate(batch))
        for name, value in items:
            array = np.ascontiguousarray(to_numpy(value))
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(array.data)
    return digest.hexdigest()[:16]
