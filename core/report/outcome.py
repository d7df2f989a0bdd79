"""A finished run as one object for other programs: what was found, by figures that belong
together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from octavo.core.values.trial import Measurement, Trial

from .loading_code import MODEL, model_file
from .model import ReportData
from .next_steps import next_steps

_NAMES = {"latency": "ms", "size": "bytes"}
"""Objective -> the unit that its fields are named by; others are named by themselves."""


def outcome(data: ReportData, folder: Path | None = None) -> dict[str, Any]:
    """Return what a run found, JSON-ready. The names are kept from version to version.

    Args:
        data: The run.
        folder: Where its result is saved; None where it is not.
    """
    found: dict[str, Any] = {
        "goal_met": data.goal_met,
        "verdict": data.verdict,
        "reason": data.reason,
        "goal": data.goal,
        "best": _best(data),
        "why_best": data.why_best,
        "trials": len(data.trials),
        "history": data.settings.get("history"),
        "again": data.command or None,
    }
    file = None if folder is None else model_file(folder / MODEL)
    steps = next_steps(data, folder).to_json()
    found["folder"] = str(folder) if folder is not None else None
    found["model"] = str(file) if file is not None else None
    found["load"] = steps["code"]
    found["warnings"] = steps["warnings"]
    found["next"] = {"costly_ops": steps["costly_ops"], "try": steps["try"]}
    return found


def _best(data: ReportData) -> dict[str, Any]:
    """Return the model that was handed back: the float model where no trial was."""
    trial = data.best or data.baseline
    told: dict[str, Any] = {
        "number": trial.number,
        "backend": trial.recipe.backend,
        "passed": data.goal_met,
        "score": _score(data, trial),
    }
    for name in data.baseline.objectives:
        told[name] = cost(name, trial, data.baseline)
    return told


def _score(data: ReportData, trial: Trial) -> dict[str, Any]:
    """Return the score with the float model's, and how sure it is where that is known."""
    metric = data.metric
    told: dict[str, Any] = {
        "metric": metric,
        "float": data.baseline.metrics.get(metric),
        "value": trial.metrics.get(metric),
        "bound": data.bound,
        "higher_is_better": data.higher_is_better,
        "confirmed": data.confirmed.get(metric),
    }
    sampling = trial.sampling.get(metric)
    told["samples"] = sampling.count if sampling else None
    told["low"] = sampling.low if sampling else None
    told["high"] = sampling.high if sampling else None
    return told


def cost(name: str, trial: Trial, baseline: Trial) -> dict[str, Any] | None:
    """Return what a trial costs beside the float model of the same rounds, JSON-ready; None where
    it was not measured.

    Args:
        name: The objective.
        trial: The trial, or the float model's own.
        baseline: The float model's.
    """
    measured = trial.objectives.get(name)
    if measured is None:
        return None
    base, ratio = _beside_float(measured, trial, baseline.objectives.get(name))
    return fields(name, measured, base, ratio)


def fields(
    name: str, measured: Measurement, base: float | None, ratio: float | None
) -> dict[str, Any]:
    """Return a measurement under the names that every JSON object has for it.

    Args:
        name: The objective.
        measured: What was measured.
        base: The float model's figure.
        ratio: To that figure.
    """
    unit = _NAMES.get(name, "value")
    if name == "size" and base is not None:
        # It is derived from a ratio, and bytes are whole.
        base = float(round(base))
    told: dict[str, Any] = {
        f"float_{unit}": _whole(base),
        unit: _whole(measured.value),
        "ratio": ratio,
    }
    if name != "size":
        told |= {"low": measured.low, "high": measured.high}
    return told


def _whole(value: float | None) -> float | int | None:
    """Return a count as a whole number."""
    is_whole = value is not None and value.is_integer()
    return int(value) if value is not None and is_whole else value


def _beside_float(
    measured: Measurement, trial: Trial, own: Measurement | None
) -> tuple[float | None, float | None]:
    """Return the float model's figure and the ratio to it, which belong together."""
    if not trial.number:
        # The float model beside itself: its two halves of the rounds differ by noise only.
        return measured.value, 1.0
    if measured.ratio is not None:
        return measured.base, measured.ratio
    if own is None or not own.value:
        return None, None
    return own.value, measured.value / own.value


__all__ = ["cost", "fields", "outcome"]
