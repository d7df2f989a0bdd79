"""The tables at the end of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from octavo.core.report import ReportData, text
from octavo.core.scoring.choice import choose
from octavo.core.values.coverage import Coverage
from octavo.core.values.trial import Trial

from .console import table


def comparison(data: ReportData) -> Table:
    """Float model against the best: score, objectives, their ratios, and what runs."""
    best = data.best
    rows: list[tuple[object, ...]] = []
    for name, value, found in data.scores:
        ratio = f"{found / value:.4g}" if found is not None and value else "-"
        rows.append(
            (name, f"{value:.5g}", "-" if found is None else f"{found:.5g}", ratio)
        )
    for name, m in data.baseline.objectives.items():
        own = best.objectives.get(name) if best else None
        rows.append((name, text.measured(m), text.measured(own), text.ratio(own)))
    rows.append(
        (
            "backend",
            data.baseline.recipe.backend,
            best.recipe.backend if best else "-",
            "",
        )
    )
    rows.append(("ops", "float", text.bits(best) if best else "-", ""))
    if best and best.recipe.transforms:
        rows.append(
            ("transforms", "none", ", ".join(map(str, best.recipe.transforms)), "")
        )
    without = "float" if data.kept_float else "none"
    title = f"trial {best.number}" if best else without
    return table(
        ("", "float", f"best ({title})", "ratio"),
        rows,
        right=("float", f"best ({title})", "ratio"),
    )


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
    told, rest = coverage.reasons[:most], coverage.reasons[most:]
    rows: list[tuple[object, ...]] = []
    for why, own in told:
        names = _few(tuple(row.weight for row in own))
        rows.append((f"{sum(row.elements for row in own):,}", len(own), why, names))
    if rest:
        others = [row for _, own in rest for row in own]
        elements = sum(row.elements for row in others)
        names = _few(tuple(row.weight for row in others))
        rows.append(
            (f"{elements:,}", len(others), f"{len(rest)} further reasons", names)
        )
    share = f"{100 * coverage.kept / coverage.total:.3g} %"
    title = f"{coverage.kept:,} of {coverage.total:,} weights ({share}) stay float"
    return table(
        ("weights", "tensors", "why", "which"),
        rows,
        right=("weights", "tensors"),
        title=title,
    )


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
    objectives = tuple(data.baseline.objectives)
    rows: list[tuple[object, ...]] = []
    for name in names:
        own = [t for t in data.completed if t.recipe.backend == name]
        best = choose(own, objectives) or _nearest_to_the_goal(own)
        if best is None:
            rows.append((name, "-", *["-"] * (2 + 2 * len(objectives))))
            continue
        figures = []
        for objective in objectives:
            measurement = best.objectives.get(objective)
            figures += [text.measured(measurement), text.ratio(measurement)]
        ops = text.bits(best) + ("" if best.passed else " (does not pass)")
        rows.append(
            (name, f"#{best.number}", text.score(best, data.metric), *figures, ops)
        )
    measured = [column for o in objectives for column in (o, f"{o} ratio")]
    columns = ("backend", "trial", data.metric, *measured, "ops")
    title = "The best of each backend; ratios to the float model as given"
    return table(columns, rows, title=title, right=columns[1:-1])


def _nearest_to_the_goal(trials: Sequence[Trial]) -> Trial | None:
    return max(trials, key=lambda t: (t.margin, -t.number), default=None)


def summary(data: ReportData) -> Group:
    """All of it, for a terminal."""

    def parts() -> Iterator[Table | Text]:
        style = "bold green" if data.goal_met else "bold red"
        yield Text(data.verdict, style=style) + Text(
            f" ({data.goal}); {data.reason}", style=""
        )
        yield comparison(data)
        if several := backends(data):
            yield several
        yield left_in_float(data)
        if data.coverage.total:
            yield float_weights(data.coverage)
        if data.command:
            yield Text(f"again: {data.command}")

    return Group(*parts())
