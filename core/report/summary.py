"""The tables at the end of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Group
from rich.text import Text

from octavo.core.values.coverage import Coverage, CoverageRow
from octavo.core.values.scheme import in_order
from octavo.core.values.trial import Measurement, Trial

from . import text
from .model import ReportData
from .next_steps import NextSteps, next_steps
from .tables import TextTable, table
from .trial_tables import backends, floats

Row = tuple[object, ...]
"""One row of a table, cell by cell."""


def comparison(data: ReportData) -> TextTable:
    """Float model against the best: score, objectives, their ratios, and what runs.

    The float model's figures are of the rounds in which the best was measured.
    """
    best = data.best
    rows = list(_score_rows(data))
    for name, measurement in data.baseline.objectives.items():
        rows.append((name, *_measured(measurement, best, name)))
    rows += _what_runs(data.baseline, best)
    title = "float" if data.kept_float else "none"
    if best:
        title = f"trial {best.number}"
    figures = ("float", f"best ({title})", "ratio")
    return table(("", *figures), rows, right=figures)


def _measured(own: Measurement, best: Trial | None, name: str) -> tuple[str, str, str]:
    """Return an objective's figures: the float model's, the best model's, their ratio."""
    found = best.objectives.get(name) if best else None
    if found is None or found.base is None:
        # Nothing was measured beside the float model: its own figure stands alone.
        return text.measured(own), text.measured(found), "-"
    return text.base(found), text.measured(found), text.ratio(found)


def _score_rows(data: ReportData) -> Iterator[Row]:
    """Yield a row for each score; that of the search with its interval and the difference in
    samples."""
    best = data.best
    for name, value, found in data.scores:
        own = f"{value:.5g}{_interval(data.baseline, name)}"
        if found is None:
            yield name, own, "-", "-"
            continue
        # There is no ratio to a score of 0.
        ratio = f"{found / value:.4g}" if value else "-"
        differing = text.difference(best, data.baseline, name) if best else ""
        if differing:
            ratio = f"{ratio} ({differing})"
        shown = f"{found:.5g}{_interval(best, name)}"
        yield name, own, shown, ratio


def _interval(trial: Trial | None, name: str) -> str:
    found = trial.sampling.get(name) if trial else None
    return f" {text.interval(found)}" if found is not None else ""


def _what_runs(baseline: Trial, best: Trial | None) -> list[Row]:
    """Return the rows that tell where the two models run, and how."""
    backend = baseline.recipe.backend
    if best is None:
        return [("backend", backend, "-", ""), ("ops", "float", "-", "")]
    rows: list[Row] = [
        ("backend", backend, best.recipe.backend, ""),
        ("ops", "float", text.bits(best), ""),
    ]
    transforms = in_order(best.recipe.transforms)
    if transforms:
        rows.append(("transforms", "none", transforms, ""))
    if best.recipe.recovery:
        seconds = text.duration(best.seconds.get("recover", 0.0))
        steps = ", ".join(map(str, best.recipe.recovery))
        rows.append(("learned", "nothing", steps, seconds))
    return rows


def left_in_float(data: ReportData) -> TextTable | Text:
    """What stayed in float, and why."""
    if not data.left_in_float:
        return Text("left in float: nothing")
    rows = []
    for kind, why, names, size in data.left_in_float:
        rows.append((kind, len(names), f"{size:,}", why, _few(names)))
    return table(
        ("left in float", "ops", "weights", "why", "which"),
        rows,
        right=("ops", "weights"),
    )


def float_weights(coverage: Coverage, most: int = 8) -> TextTable | Text:
    """Which weights stay float, by reason, the largest first; the rest in one row."""
    if not coverage.kept:
        return Text(coverage.summary())
    rows = [_reason_row(why, own) for why, own in coverage.reasons[:most]]
    rest = coverage.reasons[most:]
    if rest:
        others = [weight for _, own in rest for weight in own]
        rows.append(_reason_row(f"{len(rest)} further reasons", others))
    percent = 100 * coverage.kept / coverage.total
    share = f"{coverage.kept:,} of {coverage.total:,} weights ({percent:.3g} %)"
    title = f"{share} stay float"
    return table(
        ("weights", "tensors", "why", "which"),
        rows,
        right=("weights", "tensors"),
        title=title,
    )


def _reason_row(why: str, weights: Sequence[CoverageRow]) -> Row:
    """Return one reason's row: elements, tensors, the reason, which."""
    elements = sum(weight.elements for weight in weights)
    names = tuple(weight.weight for weight in weights)
    return f"{elements:,}", len(weights), why, _few(names)


def _few(names: tuple[str, ...], most: int = 3) -> str:
    first = ", ".join(names[:most])
    if len(names) <= most:
        return first
    return f"{first}, and {len(names) - most} more"


def summary(data: ReportData, folder: str | Path | None = None) -> Group:
    """All of it, for a terminal.

    Args:
        data: The run.
        folder: Where its result is saved, if it is.
    """
    return Group(*_parts(data, next_steps(data, folder)))


def _parts(data: ReportData, steps: NextSteps) -> Iterator[TextTable | Text]:
    style = "bold green" if data.goal_met else "bold red"
    # The reason may begin with the verdict, which stands before it here.
    reason = data.reason.removeprefix(f"{data.verdict}: ")
    why = Text(f" ({data.goal}); {reason}", style="")
    yield Text(data.verdict, style=style) + why
    yield comparison(data)
    if data.why_best:
        yield Text(data.why_best)
    several = backends(data)
    if several is not None:
        yield several
    if (in_float := floats(data)) is not None:
        yield in_float
    yield left_in_float(data)
    if data.coverage.total:
        yield float_weights(data.coverage)
    yield from next_parts(steps)
    if data.command:
        yield _whole(f"again: {data.command}")


def next_parts(steps: NextSteps) -> Iterator[TextTable | Text]:
    """Yield what a reader does next, for a terminal."""
    for warning in steps.warnings:
        yield Text("warning: ", style="yellow") + Text(warning, style="")
    if steps.costly:
        rows = [(op.name, f"{op.cost:.3g}", op.unit) for op in steps.costly]
        columns = ("op", "cost", "of")
        title = "What costs most accuracy"
        yield table(columns, rows, title, right=("cost",))
    for step in steps.steps:
        yield Text(f"try: {step.what}")
        if step.toml:
            yield _as_written(step.toml)
    if steps.file:
        yield _whole(f"model: {steps.file}")
        yield Text("to load it and run it:")
        yield _as_written(steps.code)


def _as_written(lines: str) -> Text:
    """Return lines that are to be pasted."""
    indented = "\n".join(f"    {line}" for line in lines.splitlines())
    return _whole(indented)


def _whole(said: str) -> Text:
    """Return a text that no line break is put into: it is copied as it stands."""
    return Text(said, no_wrap=True, overflow="ignore")
