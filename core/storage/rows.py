"""How trials are written into a study of Optuna, and what its database raises."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from octavo.core.errors import StoreError, said
from octavo.core.system.redaction import redacted
from octavo.core.values.json_form import without_infinities
from octavo.core.values.trial import Trial

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

TRIAL = "octavo:trial"
"""The attribute of a row that holds the whole trial; rows without it did not finish."""


def trial_text(trial: Trial) -> str:
    """Return a trial as a row holds it."""
    return json.dumps(without_infinities(trial.to_json()))


def begun_trial(recipe: str, process: Mapping[str, Any]) -> FrozenTrial:
    """Return the row of a trial that begins.

    Args:
        recipe: The recipe's digest.
        process: What tells how this process ended, should it not end the trial.
    """
    from optuna.trial import TrialState, create_trial

    attributes = {"octavo:recipe": recipe, "octavo:process": dict(process)}
    return create_trial(state=TrialState.RUNNING, user_attrs=attributes)


def trial_of(row: Mapping[str, Any], study: Mapping[str, Any]) -> Trial:
    """Return the trial of a row, with what was found out about it after it had ended.

    Args:
        row: The row's attributes.
        study: The study's.
    """
    trial = Trial.from_json(json.loads(row[TRIAL]))
    verdict = study.get(refusal_key(trial.number))
    if verdict is None:
        return trial
    return replace(
        trial, passed=False, margin=verdict["margin"], refused=verdict["why"]
    )


def refusal_key(number: int) -> str:
    """Return the attribute of a study that says why a trial was refused after it had ended."""
    return f"octavo:refused:{number}"


def timed_key(number: int) -> str:
    """Return the attribute of a study that holds what a trial measured in a last timing."""
    return f"octavo:timed:{number}"


def timed_of(trial: Trial, study: Mapping[str, Any]) -> Trial | None:
    """Return a trial with the figures of its last timing; None where it had none.

    Args:
        trial: As the search measured it.
        study: The study's attributes.
    """
    rows = study.get(timed_key(trial.number))
    if rows is None:
        return None
    stored = {**trial.to_json(), "objectives": rows}
    return replace(trial, objectives=Trial.from_json(stored).objectives)


def timed_rows(trial: Trial) -> dict[str, Any]:
    """Return the figures of a trial as that attribute holds them."""
    rows = {name: found.to_row() for name, found in trial.objectives.items()}
    finite: dict[str, Any] = without_infinities(rows)
    return finite


def values_of(trial: Trial, count: int) -> list[float] | None:
    """Return metric, then objectives: what dashboards plot.

    None for a trial without one of them, which counts as failed there only.
    """
    if trial.state != "complete":
        return None
    values = [
        next(iter(trial.metrics.values())),
        *(m.value for m in trial.objectives.values()),
    ]
    return values if len(values) == count else None


@contextlib.contextmanager
def store_errors(location: str, url: str) -> Iterator[None]:
    """Turn what the database raises (disk full, lost connection) into a StoreError.

    It names the store.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", category=UserWarning)
            yield
    except StoreError:
        raise
    except Exception as error:
        # The database, and rows that are not what was written: their kinds cannot be listed.
        why = redacted(said(error), url)
        # Without the cause where it would show what is hidden here.
        cause = error if why == said(error) else None
        raise StoreError(
            f"{location}: the history cannot be written or read: {why}. "
            "What was recorded before is kept"
        ) from cause
