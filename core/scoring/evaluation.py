"""What a score function may return, and the strict way from there to checked floats."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from octavo.core.contract.adapter import Candidate
from octavo.core.errors import EvaluationError
from octavo.core.numerics.arrays import to_numpy
from octavo.core.values.calls import Call, parts, plainest
from octavo.core.values.sampling import Sampling, sampling_of


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A score with more than one number to it.

    Attributes:
        value: The score, or several by name.
        per_sample: The score of each sample, shape (samples,), in a fixed order, the same samples
            each time; their mean is the value. What a certificate (``accuracy.confidence``) and a
            holdout need.
    """

    value: float | Mapping[str, float]
    per_sample: Any = None


@dataclass(frozen=True, slots=True)
class Scores:
    """Checked scores: finite Python floats by metric name."""

    metrics: Mapping[str, float]
    per_sample: np.ndarray | None = None


def check_scores(raw: object, metric: str = "score") -> Scores:
    """Turn what a score function returned into finite floats.

    Args:
        raw: A number (NumPy scalars and 0-d arrays or tensors count), a mapping of names to
            numbers, or an :class:`Evaluation`.
        metric: The name of a lone number.

    Raises:
        EvaluationError: For None, str, bool, tuples, arrays with elements, NaN and infinity.
    """
    per_sample = None
    if isinstance(raw, Evaluation):
        per_sample = _checked_samples(raw.per_sample)
        raw = raw.value
    if isinstance(raw, Mapping):
        if not raw:
            raise EvaluationError(
                "the score function returned an empty mapping; return at least one metric"
            )
        metrics = {str(name): _number(value, str(name)) for name, value in raw.items()}
    else:
        metrics = {metric: _number(raw, metric)}
    if per_sample is not None:
        _check_mean(metrics, per_sample, metric)
    return Scores(metrics, per_sample)


def sampling_by_metric(scores: Scores) -> dict[str, Sampling]:
    """Return what the samples say of the metric that is their mean; empty where none were given."""
    if scores.per_sample is None:
        return {}
    mean = float(scores.per_sample.mean())
    for name, value in scores.metrics.items():
        if _is_mean(value, mean):
            return {name: sampling_of(scores.per_sample)}
    return {}


def _is_mean(value: float, mean: float) -> bool:
    # Sums in single precision over many samples differ from each other by less.
    return math.isclose(value, mean, rel_tol=1e-4, abs_tol=1e-6)


def _checked_samples(raw: Any) -> np.ndarray | None:
    """Return scores of single samples as float64, shape (samples,); None where there are none."""
    if raw is None:
        return None
    scores = np.asarray(to_numpy(raw), dtype=np.float64)
    if scores.ndim != 1 or not np.isfinite(scores).all():
        raise EvaluationError(
            f"Evaluation.per_sample must be finite, of shape (samples,); got shape {scores.shape}"
        )
    return scores


def _check_mean(
    metrics: Mapping[str, float], per_sample: np.ndarray, metric: str
) -> None:
    """Refuse scores of samples that are not those of the value: of several values, of the one that
    counts, or of any."""
    if not per_sample.size:
        raise EvaluationError(
            "Evaluation.per_sample is empty; leave it out, or give a score for each sample"
        )
    mean = float(per_sample.mean())
    values = [metrics[metric]] if metric in metrics else list(metrics.values())
    if not any(_is_mean(value, mean) for value in values):
        shown = ", ".join(f"{value:g}" for value in values)
        raise EvaluationError(
            f"the mean of Evaluation.per_sample is {mean:g}, and the value is {shown}: give the "
            "scores whose mean it is, "
            "or leave per_sample out"
        )


def _number(raw: object, name: str) -> float:
    hint = "return a float, a mapping of names to floats, or octavo.Evaluation"
    if isinstance(raw, (bool, np.bool_)):
        raise EvaluationError(
            f"score {name!r} is a bool ({raw}), which would count as {int(raw)}; {hint}"
        )
    if getattr(raw, "shape", None) == () and hasattr(raw, "item"):
        raw = raw.item()
        if isinstance(raw, bool):
            raise EvaluationError(f"score {name!r} is a bool ({raw}); {hint}")
    if not isinstance(raw, (int, float)):
        shape = getattr(raw, "shape", None)
        what = f"{type(raw).__name__}" + (f" of shape {tuple(shape)}" if shape else "")
        raise EvaluationError(f"score {name!r} is a {what}, not a number; {hint}")
    value = float(raw)
    if not math.isfinite(value):
        raise EvaluationError(
            f"score {name!r} is {value}: the model's output or the score function overflows there"
        )
    return value


class ArrayModel:
    """Arrays in, arrays out, whatever the backend: what a score function is given in a run over
    several backends.

    Call it with arrays in call order, or by input name. One output comes back as an array, several
    as a tuple.
    """

    def __init__(self, candidate: Candidate) -> None:
        self.candidate = candidate

    @property
    def backend(self) -> str:
        """Name of the backend that runs it."""
        return self.candidate.recipe.backend

    def __call__(
        self, *arrays: Any, **named: Any
    ) -> np.ndarray | tuple[np.ndarray, ...]:
        """Run one batch: values in call order, by input name, or both; a lone :class:`~octavo.Call`
        is the batch itself."""
        is_whole_batch = len(arrays) == 1 and not named and isinstance(arrays[0], Call)
        args, kwargs = parts(arrays[0]) if is_whole_batch else (arrays, named)
        outputs = self.candidate.run(plainest(args, kwargs))
        return outputs[0] if len(outputs) == 1 else outputs
