"""The tables at the end of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from octavo.core.report import ReportData, text
from octavo.core.scoring.choice import choose
from octavo.core.values.coverage import Coverage, CoverageRow
from octavo.core.values.trial import Trial

from .console import table

Row = tuple[object, ...]
"""One row of a table, cell by cell."""


def comparison(data: ReportData) -> Table:
    """Float model against the best: score, objectives, their ratios, and what runs."""
    best = data.best
    rows = [_score_row(*row) for row in data.scores]
    for name, measurement in data.baseline.objectives.items():
        own = best.objectives.get(name) if best else None
        both = (text.measured(measurement), text.measured(own))
        rows.append((name, *both, text.ratio(own)))
    rows += _what_runs(data.baseline, best)
    title = "float" if data.kept_float else "none"
    if best:
        title = f"trial {best.number}"
    figures = ("float", f"best ({title})", "ratio")
    return table(("", *figures), rows, right=figures)


def _score_row(name: str, value: float, found: float | None) -> Row:
    """Return a score's row: the float model's, the best model's, their ratio."""
    own = f"{value:.5g}"
    if found is None:
        return name, own, "-", "-"
    # There is no ratio to a score of 0.
    ratio = f"{found / value:.4g}" if value else "-"
    return name, own, f"{found:.5g}", ratio


def _what_runs(baseline: Trial, best: Trial | None) -> list[Row]:
    """Return the rows that tell where the two models run, and how."""
    backend = baseline.recipe.backend
    if best is None:
        return [("backend", backend, "-", ""), ("ops", "float", "-", "")]
    rows: list[Row] = [
        ("backend", backend, best.recipe.backend, ""),
        ("ops", "float", text.bits(best), ""),
    ]
    transforms = ", ".join(map(str, best.recipe.transforms))
    if transforms:
        rows.append(("transforms", "none", transforms, ""))
    return rows


def left_in_float(data: ReportData) -> Table | Text:
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


def float_weights(coverage: Coverage, most: int = 8) -> Table | Text:
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


def backends(data: ReportData) -> Table | None:
    """The best of each backend, where there were several."""
    names = sorted({t.recipe.backend for t in data.trials})
    if len(names) < 2:
        return None
    rows = [_backend_row(data, name) for name in names]
    measured: list[str] = []
    for objective in data.baseline.objectives:
        measured += [objective, f"{objective} ratio"]
    columns = ("backend", "trial", data.metric, *measured, "ops")
    title = "The best of each backend; ratios to the float model as given"
    return table(columns, rows, title=title, right=columns[1:-1])


def _backend_row(data: ReportData, name: str) -> Row:
    """Return the best trial of a backend: number, score, each objective and its ratio, ops."""
    objectives = tuple(data.baseline.objectives)
    own = [trial for trial in data.completed if trial.recipe.backend == name]
    best = choose(own, objectives) or _nearest_to_the_goal(own)
    if best is None:
        return name, "-", *["-"] * (2 + 2 * len(objectives))
    figures = []
    for objective in objectives:
        measurement = best.objectives.get(objective)
        figures += [text.measured(measurement), text.ratio(measurement)]
    ops = text.bits(best)
    if not best.passed:
        ops += " (does not pass)"
    return name, f"#{best.number}", text.score(best, data.metric), *figures, ops


def _nearest_to_the_goal(trials: Sequence[Trial]) -> Trial | None:
    return max(trials, key=lambda t: (t.margin, -t.number), default=None)


def summary(data: ReportData) -> Group:
    """All of it, for a terminal."""

    def parts() -> Iterator[Table | Text]:
        style = "bold green" if data.goal_met else "bold red"
        why = Text(f" ({data.goal}); {data.reason}", style="")
        yield Text(data.verdict, style=style) + why
        yield comparison(data)
        several = backends(data)
        if several is not None:
            yield several
        yield left_in_float(data)
        if data.coverage.total:
            yield float_weights(data.coverage)
        if data.command:
            yield Text(f"again: {data.command}")

    return Group(*parts())
