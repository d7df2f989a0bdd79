"""From a result's record to what a report tells."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ConfigDict, Field

from octavo.core.errors import ConfigError, raised_as
from octavo.core.scoring.choice import pareto
from octavo.core.scoring.criteria.config import ToleranceConfig
from octavo.core.scoring.front import FrontPoint
from octavo.core.values.coverage import Coverage
from octavo.core.values.layers import Layer
from octavo.core.values.ledger import Applied
from octavo.core.values.scheme import FLOAT, Frozen
from octavo.core.values.settings import checked
from octavo.core.values.trial import Trial

from .model import OpLine, ReportData


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
    floats: dict[str, JsonTable] = Field(default_factory=dict)
    config: JsonTable = Field(default_factory=dict)
    settings: JsonTable = Field(default_factory=dict)
    backend_settings: JsonTable = Field(default_factory=dict)
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
    front: tuple[JsonTable, ...] = ()
    inputs: tuple[tuple[str, str, tuple[int | None, ...] | None], ...] = ()


def _gathered(facts: _Facts, title: str) -> ReportData:
    baseline = Trial.from_json(facts.baseline)
    best = Trial.from_json(facts.best)
    trials = tuple(Trial.from_json(trial) for trial in facts.trials)
    unbeaten = pareto(trials, tuple(baseline.objectives))
    accuracy = dict(facts.config.get("accuracy", {}))
    metric = str(accuracy.get("metric") or next(iter(baseline.metrics)))
    higher = _is_higher_better(accuracy, metric)
    settings, defaults = _settings(facts, accuracy)
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
        floats={name: Trial.from_json(row) for name, row in facts.floats.items()},
        confirmed=facts.confirmed or {},
        holdout=_held_out(facts.holdout),
        certificate=_certificate(facts.certificate),
        pareto=frozenset(trial.number for trial in unbeaten),
        ops=_ops(facts.ops, best),
        notes=facts.notes,
        command=facts.command,
        settings=settings,
        defaults=defaults,
        versions=facts.environment,
        created=facts.made,
        coverage=Coverage.from_json(facts.coverage),
        why_best=facts.why_best,
        layers={op: Layer.from_json(row) for op, row in facts.layers.items()},
        machine=facts.machine,
        data=facts.data,
        final=facts.final,
        remarks=facts.remarks,
        front=tuple(FrontPoint.from_json(point) for point in facts.front),
        inputs=facts.inputs,
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


def _settings(
    facts: _Facts, accuracy: Mapping[str, Any]
) -> tuple[dict[str, str], frozenset[str]]:
    """Return all settings in effect, and the names of those that are defaults.

    Results of earlier versions tell only what differs from a default.
    """
    changed = flat(facts.config)
    every = dict(facts.settings)
    if every and accuracy.get("kind", "tolerance") == "tolerance":
        every["accuracy"] = _tolerance(accuracy)
    settings = flat(every) | changed
    defaults = frozenset(settings) - frozenset(changed) if every else frozenset()
    if facts.backend_settings:
        settings |= flat(facts.backend_settings, "backend.")
    if facts.storage:
        settings["history"] = facts.storage
    return settings, defaults


def _tolerance(accuracy: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the tolerance criterion, its defaults among them."""
    config = ToleranceConfig.model_validate({**accuracy, "kind": "tolerance"})
    return config.model_dump(mode="json")


def flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested settings as dotted names, as the configuration's error messages name them."""
    rows: dict[str, str] = {}
    for key, value in table.items():
        if isinstance(value, Mapping) and value:
            rows |= flat(value, f"{prefix}{key}.")
        else:
            rows[f"{prefix}{key}"] = _said(value)
    return rows


def _said(value: Any) -> str:
    """Return a setting's value as people write it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_said, value)) or "none"
    if isinstance(value, Mapping):
        return json.dumps(value) if value else "none"
    return str(value)
