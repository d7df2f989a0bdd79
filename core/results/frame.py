"""Trials as a table of pandas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from octavo.core.errors import MissingFramework
from octavo.core.report import text
from octavo.core.values.trial import Measurement, Trial

from .shown import schemes

_UNITS = {"bytes": "bytes", "ms": "ms"}
"""Units that stand in the name of a column."""


def trials_frame(trials: Sequence[Trial]) -> Any:
    """Return a ``pandas.DataFrame`` with one row a trial.

    Raises:
        MissingFramework: If pandas is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise MissingFramework(
            "trials_frame needs pandas: pip install pandas; result.trials.table() needs nothing"
        ) from error
    found = pandas.DataFrame([row(trial) for trial in trials])
    modes = [column for column in found if column.startswith("ops_")]
    # A mode that a trial does not have is a mode of no op.
    return found.fillna(dict.fromkeys(modes, 0)).astype(dict.fromkeys(modes, int))


def row(trial: Trial) -> dict[str, Any]:
    """Return a trial's figures by the names of their columns."""
    found: dict[str, Any] = {
        "number": trial.number,
        "backend": trial.recipe.backend,
        "state": trial.state,
        "passed": trial.passed,
        "margin": trial.margin,
        **trial.metrics,
    }
    for metric, sampling in trial.sampling.items():
        found[f"{metric}_samples"] = sampling.count
        found[f"{metric}_low"] = sampling.low
        found[f"{metric}_high"] = sampling.high
    for name, measured in trial.objectives.items():
        found |= _figures(name, measured)
    for mode, count in text.modes(trial.ledger).items():
        found[f"ops_{mode.replace(' ', '_')}"] = count
    found["seconds"] = sum(trial.seconds.values())
    found["recipe"] = trial.recipe.digest
    found["description"] = schemes(trial.ledger)
    found["recovery"] = ", ".join(map(str, trial.recipe.recovery))
    return found


def _figures(name: str, measured: Measurement) -> dict[str, Any]:
    """Return an objective's columns: its figure, float's of the same rounds, ratio, spread."""
    unit = _UNITS.get(measured.unit, "")
    label = f"{name}_{unit}" if unit else name
    return {
        label: measured.value,
        f"float_{label}": measured.base,
        f"{name}_ratio": measured.ratio,
        f"{name}_low": measured.low,
        f"{name}_high": measured.high,
    }
