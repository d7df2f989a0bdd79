"""Results as they are read: the few lines of ``repr``, the tables of ``summary``, the HTML of a
notebook."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from rich.console import Group
from rich.text import Text

from octavo.core.contract.adapter import Candidate
from octavo.core.opening.config import TuningConfig
from octavo.core.report import cards, text
from octavo.core.report.loading_code import loading_code, near
from octavo.core.report.names import ran
from octavo.core.report.next_steps import NextSteps, next_steps
from octavo.core.report.reading import report_data
from octavo.core.report.summary import float_weights, next_parts, summary
from octavo.core.report.tables import TextTable, plain
from octavo.core.report.trial_tables import worse_than_float
from octavo.core.values.coverage import Coverage
from octavo.core.values.graph import ModelView
from octavo.core.values.ledger import Applied
from octavo.core.values.trial import Trial

from .ledger import Ledger


class Shown(Protocol):
    """What is read of a quantized model."""

    @property
    def candidate(self) -> Candidate:
        """The backend's object."""

    @property
    def coverage(self) -> Coverage:
        """Which weights are quantized."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know."""

    @property
    def view(self) -> ModelView | None:
        """The model's ops."""

    @property
    def ledger(self) -> Ledger:
        """What runs."""

    @property
    def saved(self) -> Path | None:
        """Where it is saved."""

    @property
    def file(self) -> Path | None:
        """The model's own file there."""


class ShownRun(Shown, Protocol):
    """What is read of a run."""

    @property
    def best(self) -> Trial:
        """The winner."""

    @property
    def baseline(self) -> Trial:
        """The float model."""

    @property
    def trials(self) -> tuple[Trial, ...]:
        """All others."""

    @property
    def config(self) -> TuningConfig:
        """The settings."""

    @property
    def goal_met(self) -> bool:
        """Whether the goal is reached."""

    @property
    def goal(self) -> str:
        """The goal in words."""

    @property
    def reason(self) -> str:
        """Why the search ended."""

    @property
    def why_best(self) -> str:
        """Why this trial."""

    @property
    def seconds(self) -> float:
        """How long it took."""

    def facts(self) -> dict[str, Any]:
        """Return the record."""


_LONGEST = 160
"""Characters of a sentence in ``repr``; the whole is in ``summary``."""

_SCHEMES = 4
"""Schemes that are named: more of them say less."""


def of_quantized(found: Shown) -> str:
    """Return a quantized model in some six lines."""
    lines = [
        ("ops", text.counts(found.candidate.ledger)),
        ("schemes", schemes(found.candidate.ledger)),
        ("weights", _short(found.coverage.summary())),
        *_notes(found),
        *_places(found),
        ("see", ".summary(), .ledger, .compare() with float, .model"),
    ]
    recipe = found.candidate.recipe
    head = f"Quantized on {recipe.backend} {text.transformed(recipe)}".rstrip()
    return "\n".join([head, *_aligned(lines)])


def of_result(found: ShownRun) -> str:
    """Return the outcome of a run in about ten lines."""
    best, baseline = found.best, found.baseline
    metric = metric_of(found)
    lines = [("score", _score(best, baseline, metric))]
    for name, measured in best.objectives.items():
        told = text.pair(measured) if best.number else text.measured(measured)
        lines.append((name, told))
    lines += [
        ("best", _best(best)),
        ("why", _short(found.why_best or found.reason)),
        ("trials", _trials(found)),
        *_places(found),
        ("see", ".summary(), .trials_frame(), .ledger, .report(path), .model"),
    ]
    head = f"Result: {verdict(found)} ({_short(found.goal)})"
    return "\n".join([head, *_aligned(lines)])


def verdict(found: ShownRun) -> str:
    """Return the outcome in a few words."""
    if found.goal_met:
        return "goal reached" if found.best.number else "the float model is kept"
    return "goal not reached"


def metric_of(found: ShownRun) -> str:
    """Return the metric that counts."""
    named = found.config.accuracy.get("metric")
    return str(named or next(iter(found.baseline.metrics), ""))


def _score(best: Trial, baseline: Trial, metric: str) -> str:
    told = f"{metric} {text.scored(best, metric)}"
    if not best.number:
        return told
    differing = text.difference(best, baseline, metric)
    apart = f", {differing} apart" if differing else ""
    return f"{told}, float {text.score(baseline, metric)}{apart}"


def _best(best: Trial) -> str:
    if not best.number:
        return f"the float model on {best.recipe.backend}"
    worse = worse_than_float(best)
    recipe = best.recipe
    parts = (schemes(best.ledger), text.transformed(recipe), text.learned(recipe))
    what = " ".join(filter(None, parts))
    told = f"trial {best.number} on {best.recipe.backend}: {what}"
    return f"{told}; {worse}" if worse else told


def _trials(found: ShownRun) -> str:
    states = Counter(trial.state for trial in found.trials)
    passed = sum(trial.passed for trial in found.trials)
    told = [f"{len(found.trials)}", f"{passed} reach the goal"]
    if states["failed"]:
        told.append(f"{states['failed']} failed")
    told.append(text.duration(found.seconds))
    return ", ".join(told)


def schemes(ledger: Mapping[str, Applied]) -> str:
    """Return what runs, the most frequent first: ``8 w8a8 per channel, 1 float``."""
    count = Counter(ran(line) for line in ledger.values())
    if not count:
        return "float throughout"
    told = [f"{number} {name}" for name, number in count.most_common(_SCHEMES)]
    left = len(count) - len(told)
    if left > 0:
        told.append(f"{left} further schemes")
    return "; ".join(told)


def _notes(found: Shown) -> Iterator[tuple[str, str]]:
    notes = [note for note in found.notes if note != found.coverage.summary()]
    if notes:
        more = f" (and {len(notes) - 1} more: .notes)" if len(notes) > 1 else ""
        yield "note", f"{_short(notes[0])}{more}"


def _places(found: Shown) -> Iterator[tuple[str, str]]:
    file = found.file
    yield "saved", near(file) if file else "not yet: .save(folder)"


def _short(said: str) -> str:
    return textwrap.shorten(said, _LONGEST, placeholder=" ...")


def _aligned(lines: list[tuple[str, str]]) -> Iterator[str]:
    width = max(len(name) for name, _ in lines)
    for name, told in lines:
        yield f"  {name:<{width}}  {told}"


def quantized_summary(found: Shown, width: int) -> str:
    """Return a quantized model's tables as text.

    Args:
        found: The model.
        width: Columns.
    """
    return plain(Group(*_quantized_parts(found)), width)


def _quantized_parts(found: Shown) -> Iterator[TextTable | Text]:
    recipe = found.candidate.recipe
    done = (text.transformed(recipe), text.learned(recipe))
    yield Text(" ".join(filter(None, (f"Quantized on {recipe.backend}", *done))))
    yield found.ledger.by_type()
    legend = found.ledger.legend()
    if legend is not None:
        yield legend
    if found.coverage.total:
        yield float_weights(found.coverage)
    for note in found.notes:
        if note != found.coverage.summary():
            yield Text(note)
    if found.file is not None:
        steps = NextSteps(near(found.file), code(found, found.saved))
        yield from next_parts(steps)


def result_summary(found: ShownRun, width: int) -> str:
    """Return a run's tables as text.

    Args:
        found: The run.
        width: Columns.
    """
    return plain(summary(report_data(found.facts()), found.saved), width)


def code(found: Shown, folder: Path | None) -> str:
    """Return three lines that load the model and run it."""
    view = found.view
    inputs = [(i.name, i.dtype, i.shape) for i in view.inputs] if view else []
    return loading_code(found.candidate.recipe.adapter, folder, inputs)


def html_of_result(found: ShownRun) -> str:
    """Return a run for a notebook."""
    data = report_data(found.facts())
    return cards.result_html(data, next_steps(data, found.saved))


def html_of_quantized(found: Shown) -> str:
    """Return a quantized model for a notebook."""
    ledger = found.candidate.ledger
    recipe = found.candidate.recipe
    backend = recipe.backend
    done = (text.counts(ledger), text.transformed(recipe), text.learned(recipe))
    told = " ".join(filter(None, done))
    kept = 100 * found.coverage.kept / max(1, found.coverage.total)
    weights = f"{found.coverage.total:,} weights in all"
    shown = [
        cards.card("quantized on", backend, told),
        cards.card("weights in float", f"{kept:.3g} %", weights),
    ]
    table = found.ledger.by_type()._repr_html_()
    return cards.wrapped(f'<div class="cards">{"".join(shown)}</div>{table}')
