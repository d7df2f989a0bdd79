"""From what the command line says of samples and scores to a score function and calibration
batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.core.contract.plugins import PluginHost
from octavo.core.errors import ConfigError
from octavo.core.opening.backends import Written
from octavo.core.opening.config import TuningConfig
from octavo.core.opening.opening import open_given
from octavo.core.scoring.evaluation import ArrayModel
from octavo.core.system.textfiles import absolute

from ..console import say
from ..face.early import existing
from .data import Samples, calibration_source, read_samples, split
from .metrics import FileScore, metric
from .models import named_object

SAMPLES = "give an .npz, or a folder of .npy files: one array per model input"


@dataclass(frozen=True)
class Wanted:
    """How candidates are scored and on what, as it was asked for.

    Attributes:
        data: Samples that are scored, and that calibrate where nothing else does.
        evaluate: ``module:function`` that scores.
        calibration: Samples that calibrate: a path, or ``module:name``.
        labels: Name of the array of labels.
        batch_size: Samples per call.
        calibration_size: Samples of ``data`` that calibrate.
    """

    data: Path | None
    evaluate: str | None = None
    calibration: str | None = None
    labels: str | None = None
    batch_size: int = 32
    calibration_size: int = 128

    def checked(self, settings: TuningConfig) -> TuningConfig:
        """Raise what can be known to be wrong before anything is read.

        Returns:
            The settings, with the direction of a built-in score where one is named.

        Raises:
            ConfigError: If files are missing, or nothing says how to score or to calibrate.
        """
        name = settings.accuracy.get("metric")
        if self.evaluate is None and name is not None:
            settings = _with_direction(settings, str(name))
        self._check_sources()
        return settings

    def _check_sources(self) -> None:
        if self.data is not None:
            existing(self.data, "--data", SAMPLES)
        if self.calibration is not None and is_path(self.calibration):
            existing(self.calibration, "--calibration", f"{SAMPLES}, or module:name")
        if self.data is None and self.evaluate is None:
            raise ConfigError(
                "say how a candidate is scored: --data with --metric, or --evaluate module:function"
            )
        if self.data is None and self.calibration is None:
            raise ConfigError(
                "calibration data is missing: give --data, or --calibration beside --evaluate"
            )


@dataclass(frozen=True)
class Scored:
    """A score function with its data, ready for a run.

    Attributes:
        score: Candidate -> score.
        batches: For calibration.
        settings: With the score's name and direction.
        sources: In words: what calibrates and what scores.
    """

    score: Callable[[Any], Any]
    batches: Iterable[Any]
    settings: TuningConfig
    sources: str

    @property
    def takes_arrays(self) -> bool:
        """Whether the score calls models with arrays, whatever the backend."""
        return isinstance(self.score, FileScore)


def is_path(text: str) -> bool:
    """Return whether samples are given by a path, and not as ``module:name``."""
    return ":" not in text or absolute(text, "calibration data").exists()


def score_function(evaluate: str) -> Callable[[Any], Any]:
    """Return the function that ``--evaluate`` names.

    Raises:
        ConfigError: If it is not there, or is no function.
    """
    found = named_object(evaluate, "--evaluate")
    if not callable(found):
        raise ConfigError(
            f"--evaluate {evaluate!r} is a {type(found).__name__}, not a function: candidate "
            "-> score"
        )
    score: Callable[[Any], Any] = found
    return score


def scored(
    wanted: Wanted,
    settings: TuningConfig,
    host: PluginHost,
    make_model: Callable[[], Any],
) -> tuple[Any, Scored]:
    """Read the samples, make the model, and return it with its score.

    Args:
        wanted: As it was asked for, and checked.
        settings: Of the run.
        host: Plugins.
        make_model: Returns the model; called when the samples are read.

    Raises:
        OctavoError: If samples, score or model make no sense.
    """
    own = score_function(wanted.evaluate) if wanted.evaluate is not None else None
    samples = read_samples(wanted.data, wanted.labels) if wanted.data else None
    batches, samples, sources = _calibration(wanted, samples)
    say(sources)
    model = make_model()
    if own is not None:
        return model, Scored(own, batches, settings, sources)
    assert samples is not None, "check() asks for samples where no function scores"
    name = _name(settings, samples)
    asked = settings.backends or ()
    reference = float_labels(model, name, samples, wanted.batch_size, host, asked)
    score = FileScore(name, samples, wanted.batch_size, reference)
    settings = _with_direction(settings, name)
    return model, Scored(score, batches, settings, sources)


def _calibration(
    wanted: Wanted, samples: Samples | None
) -> tuple[Iterable[Any], Samples | None, str]:
    """Return calibration batches, the samples that are left to be scored, and both in words."""
    size = wanted.batch_size
    if wanted.calibration is not None:
        batches = calibration_source(wanted.calibration, "--calibration", size)
        if samples is None:
            return batches, None, f"{wanted.calibration} calibrates"
        told = f"{wanted.calibration} calibrates, {len(samples)} samples of {wanted.data} score"
        return batches, samples, told
    assert samples is not None, "check() asks for samples where nothing else calibrates"
    kept, rest = split(samples, wanted.calibration_size)
    told = f"{wanted.data}: {len(kept)} samples calibrate"
    if wanted.evaluate is None:
        told += (
            f", {len(rest)} others score (--calibration gives calibration data of its "
            "own)"
        )
    return list(kept.batches(size)), rest, told


def _name(settings: TuningConfig, samples: Samples) -> str:
    usual = "accuracy" if samples.labels is not None else "cosine"
    return str(settings.accuracy.get("metric") or usual)


def _with_direction(settings: TuningConfig, name: str) -> TuningConfig:
    is_higher_better = metric(name).higher_is_better
    return TuningConfig.read(settings, metric=name, higher_is_better=is_higher_better)


def float_labels(
    model: Any,
    name: str,
    samples: Samples,
    batch_size: int,
    host: PluginHost,
    backends: Sequence[Written] = (),
) -> ArrayModel | None:
    """Return the float model, whose outputs stand in for labels; None where they are not needed.

    Args:
        model: What it is made of; None where there is none.
        name: The metric's.
        samples: Inputs and labels.
        batch_size: Samples per call.
        host: Plugins.
        backends: Of the run: one that reads the model's file needs no other.

    Raises:
        ConfigError: If it is needed and there is none.
    """
    compares_with_float = samples.labels is None or name == "agreement"
    if not compares_with_float or metric(name).needs_labels:
        return None
    if model is None:
        raise ConfigError(
            f"{name} compares with the float model's outputs: give that model with --float"
        )
    example = next(samples.batches(batch_size))
    opened = open_given(model, host, backends, example)
    return ArrayModel(opened.session.reference())
