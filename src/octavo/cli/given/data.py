"""Samples from files: an .npz, or a folder of .npy, with one array per model input and one of
labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from octavo.core.calibration.sources import load_arrays
from octavo.core.errors import DataError, nearest
from octavo.core.system.textfiles import absolute

from .models import named_object

Arrays = dict[str, np.ndarray]
"""Name -> array."""

LABELS = ("labels", "label", "targets", "target", "y")
"""Names by which an array of labels is known without being told."""


@dataclass(frozen=True)
class Samples:
    """Arrays that share their first axis.

    Attributes:
        inputs: Input name -> array, shape (samples, ...).
        labels: Shape (samples, ...), or None.
        origin: Where they were read from, for messages.
    """

    inputs: Arrays
    labels: np.ndarray | None
    origin: str

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def where(self, picked: np.ndarray) -> Samples:
        """Return the samples that a mask of shape (samples,), or indices, pick."""
        labels = None if self.labels is None else self.labels[picked]
        inputs = {name: array[picked] for name, array in self.inputs.items()}
        return Samples(inputs, labels, self.origin)

    def batches(self, size: int) -> Iterator[tuple[np.ndarray, ...] | Arrays]:
        """Yield batches of inputs. A single array goes in call order, several go by name."""
        for start in range(0, len(self), size):
            end = start + size
            rows = {name: array[start:end] for name, array in self.inputs.items()}
            if len(rows) == 1:
                yield tuple(rows.values())
            else:
                yield rows


def read_samples(path: Path, labels: str | None = None) -> Samples:
    """Read samples. Pickled arrays are refused.

    Args:
        path: An .npz file, a folder of .npy files, or one .npy file of inputs.
        labels: Name of the array of labels; None takes the first of :data:`LABELS` that is there.

    Raises:
        DataError: If nothing can be read, the lengths differ, or the named labels are missing.
    """
    arrays = load_arrays(path)
    if labels is not None and labels not in arrays:
        raise DataError(f"{path} holds no array {labels!r}{nearest(labels, arrays)}")
    of_labels = labels or next((name for name in LABELS if name in arrays), None)
    inputs = {name: array for name, array in arrays.items() if name != of_labels}
    if not inputs:
        beside = f" beside the labels {of_labels!r}" if of_labels else ""
        raise DataError(
            f"{path} holds no array of inputs{beside}; name each array after a model input"
        )
    _check_lengths(arrays, path)
    return Samples(inputs, arrays[of_labels] if of_labels else None, str(path))


def _check_lengths(arrays: Mapping[str, np.ndarray], path: Path) -> None:
    """Raise DataError where arrays are not of one length, at least 1."""
    lengths: dict[str, int] = {}
    for name, array in arrays.items():
        # A scalar has no first axis.
        lengths[name] = len(array) if array.ndim else 0
    differ = len(set(lengths.values())) > 1
    if differ or not all(lengths.values()):
        told = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise DataError(
            f"the arrays of {path} must have one length, at least 1: the first axis counts "
            f"samples; there are {told}"
        )


def calibration_source(
    spec: str, option: str, batch_size: int, labels: str | None = None
) -> Any:
    """Return what ``--calibration`` or ``--data`` names: samples of a file as batches, or the
    object of ``module:name``.

    Args:
        spec: A path, or ``module:name`` of whatever ``octavo.autotune`` takes as calibration,
            ``octavo.Batches`` included.
        option: The option, for messages.
        batch_size: Samples of a batch, where they come from a file.
        labels: Name of the array of labels in a file.
    """
    if ":" not in spec or absolute(spec, "calibration data").exists():
        return list(read_samples(Path(spec), labels).batches(batch_size))
    return named_object(spec, option)


def split(samples: Samples, calibration: int) -> tuple[Samples, Samples]:
    """Return (calibration, evaluation): ``calibration`` samples spread evenly over the file (a
    quarter at most), and the rest.

    They are kept apart, so that the score is not taken on the samples that the ranges were fitted
    to.

    Raises:
        DataError: If there are fewer than two samples.
    """
    total = len(samples)
    if total < 2:
        raise DataError(
            f"{samples.origin} holds {total} sample; give at least two, or calibration data of "
            "its own (--calibration)"
        )
    count = max(1, min(calibration, total // 4))
    spread = np.linspace(0, total - 1, count).round()
    picked = np.zeros(total, bool)
    picked[spread.astype(int)] = True
    return samples.where(picked), samples.where(~picked)
