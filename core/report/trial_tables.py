"""Trials side by side: each objective with the float model's figure of the same rounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from rich.text import Text

from octavo.core.scoring.choice import choose
from octavo.core.values.trial import Measurement, Trial

from . import text
from .model import ReportData
from .tables import TextTable, table

Column = tuple[str, Callable[[Measurement | None], str]]
"""A heading, and what stands below it for a measurement."""


def objective_columns(
    name: str, measured: Sequence[Measurement | None]
) -> list[Column]:
    """Return the columns of an objective: its figure, the float model's of the same rounds, and
    their ratio.

    Args:
        name: The objective.
        measured: What the rows of the table measured of it.
    """
    known = [m for m in measured if m is not None and m.base is not None]
    bases = {text.base(m) for m in known}
    if not known:
        return [(name, text.measured)]
    shares: Column = (f"{name} ratio", text.ratio)
    if len(bases) == 1 and len(known) > 1:
        # Exact figures have one base for all: said once.
        return [(f"{name} (float {bases.pop()})", text.measured), shares]
    return [(name, text.measured), (f"float {name}", text.base), shares]


def score_heading(metric: str, trials: Sequence[Trial]) -> str:
    """Return a metric's heading with its number of samples, where all rows have the same."""
    counts = {t.sampling[metric].count for t in trials if metric in t.sampling}
    if len(counts) != 1:
        return metric
    return f"{metric} of {counts.pop():,} samples [95 %]"


def trials_table(title: str, trials: Sequence[Trial]) -> TextTable:
    """Return the trials of a run, a row each.

    Args:
        title: Above the table.
        trials: In the order of the table, the float model first where it is among them.
    """
    names = tuple(dict.fromkeys(m for t in trials for m in t.metrics))
    metrics = tuple(score_heading(name, trials) for name in names)
    measured = list(_measured_columns(trials))
    rows: list[tuple[object, ...]] = []
    for trial in trials:
        recipe = trial.recipe
        what = (
            text.counts(trial.ledger),
            text.transformed(recipe),
            text.learned(recipe),
        )
        who = (trial.number, trial.recipe.backend, ", ".join(filter(None, what)))
        scores = [text.sure(trial, name) for name in names]
        costs = [tell(trial.objectives.get(name)) for name, _, tell in measured]
        seconds = f"{sum(trial.seconds.values()):.2f}"
        rows.append((*who, *scores, *costs, seconds, state(trial)))
    headings = [heading for _, heading, _ in measured]
    figures = (*metrics, *headings, "seconds")
    columns = ("#", "backend", "ops", *figures, "state")
    return table(
        columns,
        rows,
        title=title,
        right=("#", *figures),
        least=("seconds", "backend", *reversed(headings), *reversed(metrics)),
    )


def _measured_columns(
    trials: Sequence[Trial],
) -> Iterator[tuple[str, str, Callable[[Measurement | None], str]]]:
    """Yield (objective, heading, cell) of all objectives, in their order."""
    names = dict.fromkeys(name for trial in trials for name in trial.objectives)
    for name in names:
        found = [trial.objectives.get(name) for trial in trials]
        for heading, tell in objective_columns(name, found):
            yield name, heading, tell


def state(trial: Trial) -> Text:
    """Return what became of a trial, with a warning where it costs more than the float model."""
    if not trial.number:
        return Text("float model")
    if trial.refused:
        return Text("refused")
    if not trial.passed:
        return _not_passed(trial)
    worse = worse_than_float(trial)
    if worse:
        return Text(f"passes, {worse}", "yellow")
    return Text("passes", "green")


def _not_passed(trial: Trial) -> Text:
    if trial.distances and not trial.is_gain:
        return Text("left out, no gain")
    if trial.state != "complete":
        return Text(trial.state)
    return Text("over budget" if trial.over else "does not pass")


_WORSE = {"latency": "slower", "throughput": "slower", "size": "larger"}
"""What a worse figure of an objective is called."""


def worse_figures(trial: Trial) -> dict[str, Measurement]:
    """Return the objectives in which a trial is worse than the float model beyond its spread."""
    return {name: m for name, m in trial.objectives.items() if is_worse(m)}


def worse_than_float(trial: Trial) -> str:
    """Return in what a trial is worse than the float model beyond its spread, as in
    ``slower and larger than float``; '' where it is not."""
    told = [_WORSE.get(name, f"worse in {name}") for name in worse_figures(trial)]
    unique = list(dict.fromkeys(told))
    return f"{' and '.join(unique)} than float" if unique else ""


def is_worse(measurement: Measurement) -> bool:
    """True if all of a figure's spread is on the worse side of the float model's."""
    if measurement.ratio is None:
        return False
    share = measurement.relative
    # What the quartiles reach is noise.
    return share.low > 1 if share.lower_is_better else share.high < 1


def backends(data: ReportData) -> TextTable | None:
    """Return the best of each backend, where there were several."""
    names = sorted({t.recipe.backend for t in data.trials})
    if len(names) < 2:
        return None
    best = {name: best_of(data, name) for name in names}
    found = [trial for trial in best.values() if trial is not None]
    measured = list(_measured_columns(found))
    own = [
        n for n in data.baseline.objectives if any(_of_own(t, n, data) for t in found)
    ]
    rows: list[tuple[object, ...]] = []
    for name, trial in best.items():
        if trial is None:
            rows.append((name, *["-"] * (3 + len(measured) + len(own))))
            continue
        costs = [tell(trial.objectives.get(of)) for of, _, tell in measured]
        costs += [_of_own(trial, objective, data) or "-" for objective in own]
        score = text.sure(trial, data.metric)
        rows.append((name, f"#{trial.number}", score, *costs, _ops(trial)))
    headings = [heading for _, heading, _ in measured]
    headings += [f"{objective} of its own float" for objective in own]
    of_score = score_heading(data.metric, [t for t in best.values() if t is not None])
    columns = ("backend", "trial", of_score, *headings, "ops")
    title = (
        "The best of each backend; float's figures are of the same rounds, on "
        f"{data.baseline.recipe.backend}"
    )
    return table(
        columns, rows, title, right=columns[1:-1], least=("ops", *reversed(headings))
    )


def _of_own(trial: Trial, objective: str, data: ReportData) -> str:
    """Return an objective as a share of the float model's on the trial's own backend: what
    quantization does, whatever the runtime does; '' where that is not known."""
    own = data.floats.get(trial.recipe.backend)
    mine = trial.objectives.get(objective)
    if mine is None or mine.ratio is None:
        return ""
    if own is None:
        is_baseline = trial.recipe.backend == data.baseline.recipe.backend
        return f"{mine.ratio:.3g}" if is_baseline and data.floats else ""
    base = own.objectives.get(objective)
    return f"{mine.ratio / base.ratio:.3g}" if base is not None and base.ratio else ""


def floats(data: ReportData) -> TextTable | None:
    """Return the float model on each backend, where there were several."""
    if not data.floats:
        return None
    every = (data.baseline, *data.floats.values())
    measured = list(_measured_columns(every))
    rows: list[tuple[object, ...]] = []
    for trial in every:
        costs = [tell(trial.objectives.get(name)) for name, _, tell in measured]
        rows.append((trial.recipe.backend, text.sure(trial, data.metric), *costs))
    headings = [heading for _, heading, _ in measured]
    columns = ("float model on", score_heading(data.metric, every), *headings)
    source = data.baseline.recipe.backend
    title = f"What a runtime alone gains; ratios are to the float model on {source}"
    return table(columns, rows, title, right=columns[1:], least=headings[::-1])


def _ops(trial: Trial) -> str:
    ops = text.bits(trial)
    if not trial.passed:
        return f"{ops} (does not pass)"
    worse = worse_than_float(trial)
    return f"{ops} ({worse})" if worse else ops


def best_of(data: ReportData, backend: str) -> Trial | None:
    """Return the best trial of a backend; the closest to the goal where none passes, and None
    where none was measured."""
    objectives = tuple(data.baseline.objectives)
    own = [trial for trial in data.completed if trial.recipe.backend == backend]
    return choose(own, objectives) or nearest_to_the_goal(own)


def nearest_to_the_goal(trials: Sequence[Trial]) -> Trial | None:
    """Return the trial with the best margin; None of none."""
    return max(trials, key=lambda t: (t.margin, -t.number), default=None)
