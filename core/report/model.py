"""What a report tells, gathered from a result before any of it is drawn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pydantic import ConfigDict, Field

from octavo.core.errors import ConfigError, raised_as
from octavo.core.scoring.choice import pareto
from octavo.core.values.coverage import Coverage
from octavo.core.values.layers import Layer
from octavo.core.values.ledger import Applied
from octavo.core.values.scheme import FLOAT, Frozen
from octavo.core.values.settings import checked
from octavo.core.values.trial import Trial


@dataclass(frozen=True, slots=True)
class OpLine:
    """One op of the best model.

    Attributes:
        name: The op's name.
        type: Its type in the neutral vocabulary.
        parameters: Number of weight elements.
        line: Its line of the ledger.
    """

    name: str
    type: str
    parameters: int
    line: Applied

    @property
    def is_float(self) -> bool:
        """True if it runs in float; one that only moves codes does not."""
        return self.line.applied.is_float and not self.line.carries_codes

    @property
    def applied(self) -> str:
        """What runs, in words."""
        if self.line.carries_codes:
            return "carries codes"
        return str(self.line.applied)

    @property
    def why_float(self) -> str:
        """Why it runs in float."""
        if self.line.reason:
            return self.line.reason
        if self.line.requested.is_float:
            return "the search kept it in float"
        return "not carried out"


@dataclass(frozen=True)
class ReportData:
    """A finished run, as a reader sees it.

    Attributes:
        title: Heading.
        goal_met: Whether the model that was handed back meets the goal.
        reason: One line on why the run ended as it did.
        goal: The goal in words.
        metric: Name of the metric on the accuracy axis.
        higher_is_better: Its direction.
        bound: The least (or greatest) score that passes, or None.
        baseline: The float model.
        best: The best trial; None if none completed.
        trials: All trials after the baseline.
        confirmed: The best model's scores after it was saved and loaded again; empty where that was
            turned off.
        holdout: (float model's, best model's) scores on data that the search never saw; None where
            none was held out.
        certificate: How sure the goal is on new data, in one line; empty where that was not asked
            for.
        pareto: Numbers of the trials that no other trial beats in everything.
        ops: The best model, op by op.
        notes: Remarks of the backends and of the space.
        command: How to run it again.
        settings: Setting -> value, for the record.
        versions: Package -> version.
        created: When, in UTC, ISO 8601.
        coverage: Which weights of the best model are quantized; empty for results of versions that
            did not count.
        why_best: Why this trial and no other, in one sentence.
        layers: Op -> its figures in the best model and in the float model.
        machine: Where it was measured.
        data: What calibrated, scored and timed.
        final: The last timing of the best few in turns.
        remarks: What was told while the run went on.
    """

    title: str
    goal_met: bool
    reason: str
    goal: str
    metric: str
    higher_is_better: bool
    bound: float | None
    baseline: Trial
    best: Trial | None
    trials: Sequence[Trial]
    confirmed: Mapping[str, float] = field(default_factory=dict)
    holdout: tuple[Mapping[str, float], Mapping[str, float]] | None = None
    certificate: str = ""
    pareto: frozenset[int] = frozenset()
    ops: Sequence[OpLine] = ()
    notes: Sequence[str] = ()
    command: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    created: str = ""
    coverage: Coverage = field(default_factory=Coverage)
    why_best: str = ""
    layers: Mapping[str, Layer] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    final: Mapping[str, Any] = field(default_factory=dict)
    remarks: Sequence[str] = ()

    @property
    def kept_float(self) -> bool:
        """True if the result is the float model, because nothing that reaches the goal
        is a gain."""
        return self.goal_met and self.best is None

    @property
    def verdict(self) -> str:
        """The outcome in a few words."""
        if self.kept_float:
            return "the float model is kept"
        return "goal reached" if self.goal_met else "goal not reached"

    @cached_property
    def left_in_float(self) -> tuple[tuple[str, str, tuple[str, ...], int], ...]:
        """Rows (op type, why, names, parameters) of what runs in float, largest first."""
        groups: dict[tuple[str, str], list[OpLine]] = {}
        for op in self.ops:
            if op.is_float:
                group = (op.type, op.why_float)
                groups.setdefault(group, []).append(op)
        rows = []
        for (kind, why), ops in groups.items():
            names = tuple(op.name for op in ops)
            parameters = sum(op.parameters for op in ops)
            rows.append((kind, why, names, parameters))
        return tuple(sorted(rows, key=lambda row: (-row[3], row[0])))

    @cached_property
    def schemes(self) -> tuple[tuple[str, str, int, int], ...]:
        """Rows (scheme, realization, ops, parameters) of what runs, most parameters first."""
        count: Counter[tuple[str, str]] = Counter()
        size: Counter[tuple[str, str]] = Counter()
        for op in self.ops:
            realization = "" if op.is_float else str(op.line.realization)
            key = (op.applied, realization)
            count[key] += 1
            size[key] += op.parameters
        largest_first = sorted(count, key=lambda key: (-size[key], key))
        return tuple((*key, count[key], size[key]) for key in largest_first)

    @property
    def scores(self) -> tuple[tuple[str, float, float | None], ...]:
        """Rows (what, float model's score, best model's score): the search's, after a reload, on
        data held out."""
        own = self.baseline.metrics
        best = self.best.metrics if self.best is not None else {}
        rows = [(name, value, best.get(name)) for name, value in own.items()]
        for name, value in self.confirmed.items():
            if name in own:
                rows.append((f"{name}, saved and loaded again", own[name], value))
        if self.holdout is not None:
            own_held_out, best_held_out = self.holdout
            for name, value in own_held_out.items():
                what = f"{name}, on data held out"
                rows.append((what, value, best_held_out.get(name)))
        return tuple(rows)

    @property
    def completed(self) -> tuple[Trial, ...]:
        """Trials that were measured to the end."""
        complete = [trial for trial in self.trials if trial.state == "complete"]
        return tuple(trial for trial in complete if self.metric in trial.metrics)


def report_data(
    facts: Mapping[str, Any], title: str = "Quantization report"
) -> ReportData:
    """Gather what a report tells.

    Args:
        facts: What ``Result.facts()`` returns, or the manifest of a saved result
            (``octavo.core.results.result.read_manifest``).
        title: Heading.

    Raises:
        ConfigError: If the manifest is one of a model that was quantized without a search, or is
            damaged.
    """
    if "trials" not in facts:
        raise ConfigError(
            "this result holds no trials: it was quantized without a search, and there is nothing "
            "to report"
        )
    damaged = "the record of this result is damaged"
    with raised_as(ConfigError, damaged, "save the result again"):
        return _gathered(checked(_Facts, facts, damaged), title)


JsonTable = dict[str, Any]
"""Part of a record, as it is read from JSON."""


class _Facts(Frozen):
    """What a report takes from a result's record, which may hold more."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=True)

    goal_met: bool
    reason: str
    goal: str
    best: JsonTable
    baseline: JsonTable
    trials: tuple[JsonTable, ...]
    config: JsonTable = Field(default_factory=dict)
    holdout: JsonTable | None = None
    confirmed: dict[str, float] | None = None
    certificate: JsonTable | None = None
    ops: dict[str, tuple[str, int, str]] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()
    command: str = ""
    storage: str = ""
    environment: dict[str, str] = Field(default_factory=dict)
    made: str = ""
    coverage: JsonTable = Field(default_factory=dict)
    why_best: str = ""
    layers: dict[str, JsonTable] = Field(default_factory=dict)
    machine: JsonTable = Field(default_factory=dict)
    data: JsonTable = Field(default_factory=dict)
    final: JsonTable = Field(default_factory=dict)
    remarks: tuple[str, ...] = ()


def _gathered(facts: _Facts, title: str) -> ReportData:
    baseline = Trial.from_json(facts.baseline)
    best = Trial.from_json(facts.best)
    trials = tuple(Trial.from_json(trial) for trial in facts.trials)
    unbeaten = pareto(trials, tuple(baseline.objectives))
    accuracy = dict(facts.config.get("accuracy", {}))
    metric = str(accuracy.get("metric") or next(iter(baseline.metrics)))
    higher = _is_higher_better(accuracy, metric)
    settings = _flat(facts.config)
    if facts.storage:
        settings["history"] = facts.storage
    return ReportData(
        title=title,
        goal_met=facts.goal_met,
        reason=facts.reason,
        goal=facts.goal,
        metric=metric,
        higher_is_better=higher,
        bound=_bound(accuracy, metric, baseline, higher),
        baseline=baseline,
        best=best if best.number else None,
        trials=trials,
        confirmed=facts.confirmed or {},
        holdout=_held_out(facts.holdout),
        certificate=_certificate(facts.certificate),
        pareto=frozenset(trial.number for trial in unbeaten),
        ops=_ops(facts.ops, best),
        notes=facts.notes,
        command=facts.command,
        settings=settings,
        versions=facts.environment,
        created=facts.made,
        coverage=Coverage.from_json(facts.coverage),
        why_best=facts.why_best,
        layers={op: Layer.from_json(row) for op, row in facts.layers.items()},
        machine=facts.machine,
        data=facts.data,
        final=facts.final,
        remarks=facts.remarks,
    )


def _is_higher_better(accuracy: Mapping[str, Any], metric: str) -> bool:
    """Return the direction of a metric: its own setting, else the criterion's, else upwards."""
    of_metric = accuracy.get("metrics", {}).get(metric, {})
    said = of_metric.get("higher_is_better")
    if said is None:
        said = accuracy.get("higher_is_better")
    return said is not False


def _held_out(
    found: Mapping[str, Any] | None,
) -> tuple[Mapping[str, float], Mapping[str, float]] | None:
    """Return the scores on data held out, the float model's first; None where there are none."""
    if not found:
        return None
    own = _scores(found["baseline"])
    best = _scores(found["best"])
    return own, best


def _scores(table: Mapping[str, Any]) -> dict[str, float]:
    return {str(metric): float(value) for metric, value in table.items()}


def _certificate(found: Mapping[str, Any] | None) -> str:
    if not found:
        return ""
    said = "Certified" if found["holds"] else "Not certified"
    method = f" ({found['method']})" if found["samples"] else ""
    return f"{said}: {found['reason']}{method}"


def _ops(table: Mapping[str, Sequence[Any]], best: Trial) -> tuple[OpLine, ...]:
    """Every op of the model in its order; those the recipe does not name run in float."""
    names = table or {name: ["", 0, ""] for name in best.ledger}
    lines = []
    for name, (kind, parameters, why) in names.items():
        line = best.ledger.get(name)
        if line is None:
            line = Applied(best.recipe[name], FLOAT, "kernel", str(why))
        lines.append(OpLine(name, str(kind), int(parameters), line))
    return tuple(lines)


def _bound(
    accuracy: Mapping[str, Any], metric: str, baseline: Trial, higher: bool
) -> float | None:
    """The least (greatest) passing score of the tolerance criterion; None for other criteria, and
    for weighted means."""
    is_tolerance = accuracy.get("kind", "tolerance") == "tolerance"
    is_weighted = accuracy.get("combine") == "weighted"
    if not is_tolerance or is_weighted or metric not in baseline.metrics:
        return None
    own = accuracy.get("metrics", {}).get(metric, {})
    said = {name: value for name, value in own.items() if value is not None}
    settings = {"tolerance": 0.01, "mode": "relative", **accuracy, **said}
    value = baseline.metrics[metric]
    unit = abs(value) if settings["mode"] == "relative" else 1.0
    allowed = float(settings["tolerance"]) * unit
    return value - allowed if higher else value + allowed


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted names, as the configuration's error messages name them."""
    rows: dict[str, str] = {}
    for key, value in table.items():
        if isinstance(value, Mapping) and value:
            rows |= _flat(value, f"{prefix}{key}.")
        else:
            items = value if isinstance(value, (list, tuple)) else [value]
            rows[f"{prefix}{key}"] = ", ".join(map(str, items))
    return rows
