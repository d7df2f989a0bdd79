"""A quantized model beside the float model that it was made from: size, time, outputs, score."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from octavo.core.calibration.data import CalibrationData, calibration_data, rows
from octavo.core.calibration.raw import materialize
from octavo.core.contract.adapter import Candidate, Opened, Session
from octavo.core.contract.objective import Subject
from octavo.core.errors import DataError
from octavo.core.report import text
from octavo.core.report.outcome import fields
from octavo.core.report.tables import TextTable, plain, table
from octavo.core.report.trial_tables import is_worse
from octavo.core.scoring.evaluation import (
    ArrayModel,
    Scores,
    check_scores,
    sampling_by_metric,
)
from octavo.core.scoring.objectives.config import LatencyConfig, SizeConfig
from octavo.core.scoring.objectives.latency import Latency
from octavo.core.scoring.objectives.size import Size
from octavo.core.values.sampling import Sampling
from octavo.core.values.trial import Measurement

from .output_differences import OutputDifference, Sums, output_json, output_row

BATCHES = 8
"""Batches on which outputs are compared: their figures are means, and more change little."""


@dataclass(frozen=True)
class Origin:
    """What a quantized model was made from.

    Attributes:
        opened: The float model on the quantized one's backend.
        data: The calibration data; None where there was none.
        session: The float session after the recipe's transforms, for what goes on learning; None
            where that is the opened one.
    """

    opened: Opened
    data: CalibrationData | None = None
    session: Session | None = None

    def __repr__(self) -> str:
        calibrated = "no data" if self.data is None else "calibration data"
        return f"Origin(the float model on {self.opened.name}, {calibrated})"

    @cached_property
    def reference(self) -> Candidate:
        """The float model as a candidate."""
        return self.opened.session.reference()

    def read(self, data: Any) -> CalibrationData:
        """Return data of any form as the model's batches; those of calibration for None.

        Raises:
            DataError: If there are none.
        """
        if data is None and self.data is not None:
            return self.data
        if data is None:
            raise DataError(
                "the two models are compared on data, and this one was quantized without any: "
                "give some batches, compare(data)"
            )
        view = self.opened.view
        return calibration_data(materialize(data), view.inputs, view.reading)


@dataclass(frozen=True)
class ScorePair:
    """A score of both models.

    Attributes:
        float_value: The float model's.
        value: The quantized model's.
        float_sampling: Number of samples and interval of the float model's; None where the score
            function gave no score of single samples.
        sampling: The same of the quantized model's.
    """

    float_value: float
    value: float
    float_sampling: Sampling | None = None
    sampling: Sampling | None = None


@dataclass(frozen=True)
class Comparison:
    """A quantized model beside its float model.

    Attributes:
        size: Bytes of the saved files, with float's.
        latency: Milliseconds a call, both taken in turns; None where it was not measured.
        outputs: How each output differs.
        samples: On how many samples outputs were compared.
        scores: Metric -> both scores; empty where no score function was given.
    """

    size: Measurement
    latency: Measurement | None
    outputs: tuple[OutputDifference, ...]
    samples: int
    scores: Mapping[str, ScorePair] = field(default_factory=dict)

    @property
    def warnings(self) -> tuple[str, ...]:
        """In what the quantized model is worse than the float model, in words."""
        told = []
        if self.latency is not None and is_worse(self.latency):
            told.append(
                f"the quantized model is slower than float here: {text.pair(self.latency)}"
            )
        if is_worse(self.size):
            told.append(
                f"the quantized model is larger than float: {text.pair(self.size)}"
            )
        return tuple(told)

    def table(self) -> TextTable:
        """Return the figures as a table: float, quantized, ratio."""
        found: list[tuple[str, str, str, str]] = [_row("size", self.size)]
        if self.latency is not None:
            found.append(_row("latency", self.latency))
        for metric, pair in self.scores.items():
            found.append(_score_row(metric, pair))
        found += [output_row(output, len(self.outputs)) for output in self.outputs]
        columns = ("", "float", "quantized", "ratio")
        title = f"Float against quantized; outputs on {self.samples:,} samples"
        return table(columns, found, title, right=columns[1:])

    def to_json(self) -> dict[str, Any]:
        """Return the figures, JSON-ready; an infinite ``sqnr_db`` (no difference) is None."""
        return {
            "size": _cost("size", self.size),
            "latency": None if self.latency is None else _cost("latency", self.latency),
            "outputs": [output_json(output) for output in self.outputs],
            "samples": self.samples,
            "scores": {name: _score_json(pair) for name, pair in self.scores.items()},
            "warnings": list(self.warnings),
        }

    def __repr__(self) -> str:
        return "\n".join([plain(self.table()), *self.warnings])

    def _repr_html_(self) -> str:
        """Return the table for a notebook."""
        return self.table()._repr_html_()


def compare(
    candidate: Candidate,
    origin: Origin,
    data: Any = None,
    score: Callable[[Any], Any] | None = None,
    *,
    native: bool = True,
    measure: bool = True,
    metric: str = "score",
) -> Comparison:
    """Compare a quantized model with the float model.

    Args:
        candidate: The quantized model.
        origin: What it was made from.
        data: Batches of any form; None takes those of calibration.
        score: As for :func:`autotune`; called with either model.
        native: Whether ``score`` is given the backends' own models.
        measure: Whether calls are timed.
        metric: Name of a lone score.
    """
    batches = origin.read(data)
    mine = Subject(candidate, batches.first())
    base = Subject(origin.reference, batches.first())
    try:
        size = Size(SizeConfig()).measure(mine, base)
        latency = Latency(LatencyConfig()).measure(mine, base) if measure else None
    finally:
        mine.close()
        base.close()
    outputs, samples = _differences(candidate, origin, batches)
    scores = {}
    if score is not None:
        own = check_scores(score(_model(candidate, native)), metric)
        other = check_scores(score(_model(origin.reference, native)), metric)
        scores = _pairs(own, other)
    return Comparison(size, latency, outputs, samples, scores)


def _model(candidate: Candidate, native: bool) -> Any:
    return candidate.native if native else ArrayModel(candidate)


def _pairs(own: Scores, other: Scores) -> dict[str, ScorePair]:
    sure, float_sure = sampling_by_metric(own), sampling_by_metric(other)
    pairs = {}
    for name, value in own.metrics.items():
        if name in other.metrics:
            base = other.metrics[name]
            pairs[name] = ScorePair(base, value, float_sure.get(name), sure.get(name))
    return pairs


def _differences(
    candidate: Candidate, origin: Origin, batches: Iterable[Any]
) -> tuple[tuple[OutputDifference, ...], int]:
    """Return how the outputs differ over the first batches, and the number of their samples."""
    sums: list[Sums] = []
    samples = 0
    for index, batch in enumerate(batches):
        if index == BATCHES:
            break
        samples += rows(batch)
        quantized, reference = candidate.run(batch), origin.reference.run(batch)
        if not sums:
            sums = [Sums() for _ in reference]
        for one, q, f in zip(sums, quantized, reference, strict=True):
            one.add(np.asarray(q), np.asarray(f))
    names = origin.opened.view.outputs
    told = []
    for index, one in enumerate(sums):
        name = names[index] if index < len(names) else f"output {index}"
        told.append(one.told(name))
    return tuple(told), samples


def _row(name: str, found: Measurement) -> tuple[str, str, str, str]:
    return name, text.base(found), text.measured(found), text.ratio(found)


def _score_row(metric: str, pair: ScorePair) -> tuple[str, str, str, str]:
    float_value = _scored(pair.float_value, pair.float_sampling)
    value = _scored(pair.value, pair.sampling)
    ratio = f"{pair.value / pair.float_value:.4g}" if pair.float_value else "-"
    differing = text.samples_apart(
        pair.value, pair.sampling, pair.float_value, pair.float_sampling
    )
    if differing:
        ratio = f"{ratio} ({differing})"
    return metric, float_value, value, ratio


def _scored(value: float, sampling: Sampling | None) -> str:
    own = f"{value:.5g}"
    return own if sampling is None else f"{own} {text.interval(sampling)}"


def _cost(name: str, found: Measurement) -> dict[str, Any]:
    return fields(name, found, found.base, found.ratio)


def _score_json(pair: ScorePair) -> dict[str, Any]:
    sampling = pair.sampling
    return {
        "float": pair.float_value,
        "value": pair.value,
        "samples": sampling.count if sampling else None,
        "low": sampling.low if sampling else None,
        "high": sampling.high if sampling else None,
    }
