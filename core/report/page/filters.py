"""What the page's templates call on values: figures in words, and names that break where they
may."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from html import escape
from typing import Any

from octavo.core.report import text
from octavo.core.report.front_table import loss, verdict
from octavo.core.values.trial import Measurement, Trial

SEPARATORS = re.compile(r"(?<=[^/._:-][/._:-])(?=[^/._:-])")
"""Where a name may go on in the next line: behind a separator within it, and nowhere else."""


def breakable(name: str) -> str:
    """Return a name as markup, escaped, that breaks behind separators only."""
    return "<wbr>".join(map(escape, SEPARATORS.split(name)))


def apart(trial: Trial | None, baseline: Trial, metric: str) -> str:
    """Return how far a trial's score is from the float model's in samples; '' where samples are not
    right or wrong."""
    scores = [t.metrics.get(metric, math.nan) for t in (trial, baseline) if t]
    if trial is None or not all(map(math.isfinite, scores)):
        return ""
    found = text.difference(trial, baseline, metric)
    if found.startswith("none"):
        return "as many samples right"
    return f"{found} apart" if found else ""


def is_worse(measurement: Measurement | None) -> bool:
    """Return whether a model is slower, larger, ... than float, by more than the spread."""
    if measurement is None or measurement.ratio is None:
        return False
    share = measurement.relative
    return share.low > 1 if share.lower_is_better else share.high < 1


def spread(measurement: Measurement) -> str:
    """Return the ends of a measurement's spread: ``1.49 ms to 1.6 ms``."""
    low = text.figure(measurement.low, measurement.unit)
    high = text.figure(measurement.high, measurement.unit)
    return f"{low} to {high}"


def state(trial: Trial) -> str:
    """Return what became of a trial."""
    if trial.error:
        return "failed"
    if trial.refused:
        return "refused"
    if trial.reused is not None:
        return f"as #{trial.reused}"
    if trial.distances and not trial.is_gain:
        return text.left_out(trial)
    if trial.evaluated < 1:
        return f"{trial.state} after {100 * trial.evaluated:.0f} % of the samples"
    return trial.state


def capitalized(title: str) -> str:
    """Return a title with its first letter as a capital, the others as they are."""
    return title[:1].upper() + title[1:]


def sentence(said: str) -> str:
    """Return what the core says in passing as a sentence: a capital, and a full stop."""
    is_whole = not said or said.endswith((".", "!", "?"))
    return capitalized(said) if is_whole else f"{capitalized(said)}."


FILTERS: Mapping[str, Callable[..., Any]] = {
    "apart": apart,
    "base": text.base,
    "bits": text.bits,
    "bytes": text.size,
    "capitalized": capitalized,
    "is_worse": is_worse,
    "loss": loss,
    "measured": text.measured,
    "ratio": text.ratio,
    "samples": text.samples,
    "score": text.score,
    "scored": text.scored,
    "sentence": sentence,
    "spread": spread,
    "state": state,
    "verdict": verdict,
}
"""By the names that templates know them by."""
