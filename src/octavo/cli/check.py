"""``octavo check``: a saved result, loaded and scored again: is it still what it was?"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from octavo.core.contract.adapter import Candidate
from octavo.core.contract.plugins import PluginHost
from octavo.core.errors import ConfigError
from octavo.core.opening.choosing import reads
from octavo.core.report import ReportData, report_data, text
from octavo.core.results.result import load_candidate, read_manifest
from octavo.core.scoring.evaluation import ArrayModel, check_scores, sampling_by_metric
from octavo.core.values.sampling import Sampling

from .console import out, show_json
from .face.early import existing
from .face.failures import DONE, FAILED
from .face.logs import logged
from .face.options import (
    GOAL,
    AsJson,
    BatchSize,
    Data,
    Evaluate,
    FloatModel,
    Labels,
    LogFile,
    ResultFolder,
    Verbose,
    option,
)
from .given.data import read_samples
from .given.metrics import METRICS, FileScore, metric
from .given.models import check_model, source
from .given.scoring import SAMPLES, float_labels, score_function

EXAMPLES = """
octavo check model-quantized --data samples.npz
octavo check model-quantized --evaluate my_module:score
octavo check model-quantized --data samples.npz --json
"""

_METRIC = f"{', '.join(METRICS)}; left out: the one that it was tuned by."


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("check", epilog=EXAMPLES)(check)


def check(
    result: ResultFolder,
    data: Data = None,
    labels: Labels = None,
    batch_size: BatchSize = 32,
    float_model: FloatModel = None,
    metric_name: Annotated[
        str | None, option(GOAL, "NAME", _METRIC, "--metric")
    ] = None,
    evaluate: Evaluate = None,
    as_json: AsJson = False,
    verbose: Verbose = 0,
    log_file: LogFile = None,
) -> None:
    """Load a saved result, score it again, and hold the score against the recorded one.

    Exit code 0: the score keeps the goal. 1: it does not, or the result cannot be loaded.
    """
    folder = existing(result, "the result", "give a folder that octavo wrote")
    manifest = read_manifest(folder)
    record = report_data(manifest) if "trials" in manifest else None
    name = _metric_name(metric_name, evaluate, record)
    if evaluate is None and data is None:
        raise ConfigError(
            "say how it is scored: --data with --metric, or --evaluate module:function"
        )
    if data is not None:
        existing(data, "--data", SAMPLES)
    if float_model is not None:
        check_model(float_model)
    with ExitStack() as stack:
        stack.enter_context(logged(verbose, log_file))
        in_float = source(float_model) if float_model else None
        candidate = load_candidate(folder, in_float)
        if evaluate is not None:
            searched = manifest.get("config", {}).get("backends") or ()
            # Older results do not say what their score function was given.
            is_arrays = manifest.get("arrays", len(searched) > 1)
            model = ArrayModel(candidate) if is_arrays else candidate.native
            raw = score_function(evaluate)(model)
        else:
            assert data is not None, "asked for above"
            samples = read_samples(data, labels)
            host, made_by = PluginHost(), manifest["backend"]
            asked = (made_by,) if reads(host.adapters()[made_by], in_float) else ()
            reference = float_labels(in_float, name, samples, batch_size, host, asked)
            score = FileScore(name, samples, batch_size, reference)
            raw = score(ArrayModel(candidate))
    scores = check_scores(raw, name)
    value = _value(scores.metrics, name)
    found = _Found(
        folder, candidate, name, value, sampling_by_metric(scores).get(name), record
    )
    if as_json:
        show_json(found.facts())
    else:
        out().print(found.words())
    raise typer.Exit(found.code)


def _metric_name(
    given: str | None, evaluate: str | None, record: ReportData | None
) -> str:
    """Return by which metric a result is scored.

    Raises:
        ConfigError: If it is not built in, and no function of the user's scores.
    """
    recorded = record.metric if record is not None else None
    name = given or recorded
    if evaluate is not None:
        return name or "score"
    if name is None:
        raise ConfigError(
            f"this result records no score: say which with --metric ({', '.join(METRICS)})"
        )
    if given is None and name not in METRICS:
        raise ConfigError(
            f"this result was scored by {name!r}, which is not built in: give the function with "
            "--evaluate module:function, or another score with --metric"
        )
    metric(name)
    return name


def _value(metrics: Mapping[str, float], name: str) -> float:
    if name not in metrics:
        raise ConfigError(
            f"--evaluate gives {', '.join(metrics)}, and no {name!r}, by which the result was "
            "tuned; --metric names another"
        )
    return metrics[name]


@dataclass(frozen=True)
class _Found:
    """A score that was taken again, beside what is recorded.

    Attributes:
        folder: Of the result.
        candidate: As it was loaded.
        metric: Name of the score.
        value: The score now.
        sampling: How sure it is; None where single samples were not scored.
        record: Of the run; None for a model that was quantized without one.
    """

    folder: Path
    candidate: Candidate
    metric: str
    value: float
    sampling: Sampling | None
    record: ReportData | None

    @property
    def recorded(self) -> float | None:
        """The score that the result was handed back with."""
        if self.record is None:
            return None
        confirmed = self.record.confirmed.get(self.metric)
        trial = self.record.best or self.record.baseline
        return trial.metrics.get(self.metric) if confirmed is None else confirmed

    @property
    def higher_is_better(self) -> bool:
        """The metric's direction."""
        if self.record is not None and self.record.metric == self.metric:
            return self.record.higher_is_better
        return self.metric not in METRICS or metric(self.metric).higher_is_better

    @property
    def limit(self) -> float | None:
        """The least (greatest) score that is well; None where nothing says.

        The goal's; for a result that missed the goal when it was made, as far below its own score
        as the goal lay below float's.
        """
        record = self.record
        if record is None or record.bound is None or record.metric != self.metric:
            return self.recorded
        if record.goal_met or self.recorded is None:
            return record.bound
        allowed = record.bound - record.baseline.metrics[self.metric]
        return self.recorded + allowed

    @property
    def is_well(self) -> bool:
        """Whether the score keeps the limit."""
        if self.limit is None:
            return True
        if self.higher_is_better:
            return self.value >= self.limit
        return self.value <= self.limit

    @property
    def code(self) -> int:
        """The exit code."""
        return DONE if self.is_well else FAILED

    def reason(self) -> str:
        """Return the verdict in a sentence."""
        if self.limit is None:
            return "it loads and runs; nothing is recorded to compare with"
        sign = ">=" if self.higher_is_better else "<="
        goal = f"{self.metric} {sign} {self.limit:.5g}"
        if self.is_well:
            return f"it keeps {goal}"
        return f"it does not keep {goal}"

    def facts(self) -> dict[str, Any]:
        """Return everything as a JSON object."""
        record, sampling = self.record, self.sampling
        baseline = record.baseline.metrics.get(self.metric) if record else None
        score = {
            "metric": self.metric,
            "value": self.value,
            "recorded": self.recorded,
            "float": baseline,
            "limit": self.limit,
            "higher_is_better": self.higher_is_better,
            "samples": sampling.count if sampling else None,
            "low": sampling.low if sampling else None,
            "high": sampling.high if sampling else None,
        }
        return {
            "ok": self.is_well,
            "reason": self.reason(),
            "score": score,
            "backend": self.candidate.recipe.backend,
            "bytes": _bytes(self.folder),
            "folder": str(self.folder),
            "exit_code": self.code,
        }

    def words(self) -> Text:
        """Return everything for people."""
        verdict = (
            Text("ok: ", "bold green") if self.is_well else Text("worse: ", "bold red")
        )
        told = verdict + Text(self.reason())
        told.append(f"\n{self.metric} {self.value:.5g}")
        if self.recorded is not None:
            told.append(f"; recorded {self.recorded:.5g}")
        if self.sampling is not None:
            low, high = self.sampling.low, self.sampling.high
            told.append(
                f"; {self.sampling.count} samples, 95 % interval {low:.4g} to {high:.4g}"
            )
        told.append(
            f"\n{self.folder}: loaded on {self.candidate.recipe.backend}, "
            f"{text.size(_bytes(self.folder))}"
        )
        return told


def _bytes(folder: Path) -> int:
    files = (folder / "model").rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())
