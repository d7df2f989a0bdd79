"""Scores that need no Python from the user: one number per sample, then their mean.

The per-sample scores go to the search as well, which may end a hopeless evaluation early.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from octavo.core.errors import ConfigError, DataError, nearest
from octavo.core.numerics.arrays import to_numpy
from octavo.core.scoring.racing import SampleScore

from .data import Samples


@dataclass(frozen=True)
class Metric:
    """A score.

    Attributes:
        summary: What it is, for the help.
        per_sample: (outputs, labels) -> one number per sample, shape (samples,).
        higher_is_better: Its direction.
        needs_labels: False if the float model's own outputs can stand in for labels.
    """

    summary: str
    per_sample: Callable[[np.ndarray, np.ndarray], np.ndarray]
    higher_is_better: bool = True
    needs_labels: bool = False


def _classes(outputs: np.ndarray) -> np.ndarray:
    """Class indices: outputs that are integers already (a classifier's label output), or the
    largest of the last axis."""
    found: np.ndarray = (
        outputs if np.issubdtype(outputs.dtype, np.integer) else outputs.argmax(-1)
    )
    return found


def _mean(values: np.ndarray) -> np.ndarray:
    mean: np.ndarray = values.reshape(len(values), -1).mean(1, dtype=np.float64)
    return mean


def _accuracy(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    found = _classes(outputs)
    wanted = labels if labels.ndim == found.ndim else _classes(labels)
    if found.shape != wanted.shape:
        raise DataError(
            f"accuracy: the model's classes have shape {found.shape} and the labels "
            f"{labels.shape}; give one class index a prediction"
        )
    return _mean((found == wanted).astype(np.float64))


def _top5(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    if outputs.ndim != 2 or labels.ndim != 1:
        raise DataError(
            f"top5 takes outputs (samples, classes) and labels (samples,), not {outputs.shape} "
            f"and {labels.shape}"
        )
    best = np.argpartition(outputs, -min(5, outputs.shape[1]), axis=1)[:, -5:]
    hit: np.ndarray = (best == labels[:, None]).any(1)
    return hit.astype(np.float64)


def _same_shape(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    if outputs.size != labels.size:
        raise DataError(
            f"outputs of shape {outputs.shape} cannot be compared with targets of shape "
            f"{labels.shape}"
        )
    difference: np.ndarray = outputs.astype(np.float64) - labels.reshape(outputs.shape)
    return difference


def _cosine(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    _same_shape(outputs, labels)
    a = outputs.reshape(len(outputs), -1).astype(np.float64)
    b = labels.reshape(len(labels), -1).astype(np.float64)
    norm = np.sqrt(np.square(a).sum(1) * np.square(b).sum(1))
    # Two vectors of zeros are alike; one beside another vector is not.
    both = np.logical_not(np.logical_or(a.any(1), b.any(1)))
    cosine: np.ndarray = np.where(
        both, 1.0, (a * b).sum(1) / np.where(norm > 0, norm, 1.0)
    )
    return cosine


METRICS: Mapping[str, Metric] = {
    "accuracy": Metric("share of right classes", _accuracy, needs_labels=True),
    "top5": Metric(
        "share with the right class among the five likeliest", _top5, needs_labels=True
    ),
    "agreement": Metric("share of classes that are the float model's", _accuracy),
    "cosine": Metric(
        "cosine similarity with the targets, or with the float model's outputs", _cosine
    ),
    "mse": Metric(
        "mean squared error",
        lambda o, y: _mean(_same_shape(o, y) ** 2),
        higher_is_better=False,
        needs_labels=True,
    ),
    "mae": Metric(
        "mean absolute error",
        lambda o, y: _mean(np.abs(_same_shape(o, y))),
        higher_is_better=False,
        needs_labels=True,
    ),
}


def metric(name: str) -> Metric:
    """Return a metric by name.

    Raises:
        ConfigError: With the nearest names.
    """
    if name not in METRICS:
        raise ConfigError(
            f"no metric called {name!r}{nearest(name, METRICS)} (--evaluate module:function takes "
            "any other score)"
        )
    return METRICS[name]


def first_output(
    model: Any, batch: tuple[np.ndarray, ...] | dict[str, np.ndarray]
) -> np.ndarray:
    """Run one batch, by position or by name, and return the first output as an array."""
    raw = model(**batch) if isinstance(batch, dict) else model(*batch)
    if isinstance(raw, Mapping):
        raw = next(iter(raw.values()))
    return to_numpy(raw[0] if isinstance(raw, (tuple, list)) else raw)


class FileScore(SampleScore):
    """The score of a candidate on samples from a file; single samples can be scored, so that
    hopeless candidates cost less.

    Args:
        name: The metric's name.
        samples: Inputs and labels.
        batch_size: Samples per call.
        reference: The float model, whose outputs stand in where there are no labels.
    """

    def __init__(
        self,
        name: str,
        samples: Samples,
        batch_size: int,
        reference: Callable[..., Any] | None = None,
    ) -> None:
        chosen = metric(name)
        super().__init__(
            self._some, len(samples), best=1.0 if chosen.higher_is_better else 0.0
        )
        self.data = samples
        self.batch_size = batch_size
        self._metric = chosen
        labels = None if name == "agreement" else samples.labels
        if labels is None and chosen.needs_labels:
            raise DataError(
                f"{name} needs labels, and {samples.origin} holds none; name their array with "
                "--labels, or take --metric agreement or cosine"
            )
        if labels is None:
            if reference is None:
                raise DataError(
                    f"{name} needs targets, and {samples.origin} holds none"
                )
            outputs = np.concatenate(
                [
                    first_output(reference, batch)
                    for batch in samples.batches(batch_size)
                ]
            )
            labels = _classes(outputs) if name == "agreement" else outputs
        self._labels = labels

    def _some(self, model: Any, indices: np.ndarray) -> np.ndarray:
        whole = len(indices) == len(self.data) and bool(
            (indices == np.arange(len(indices))).all()
        )
        picked = self.data if whole else self.data.where(indices)
        labels = self._labels if whole else self._labels[indices]
        parts = []
        for index, batch in enumerate(picked.batches(self.batch_size)):
            rows = slice(index * self.batch_size, (index + 1) * self.batch_size)
            parts.append(
                self._metric.per_sample(first_output(model, batch), labels[rows])
            )
        return np.concatenate(parts)
