"""``octavo history``: the trials of a run, finished or not, from its store or its saved result."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from octavo.core.errors import ConfigError, raised_as
from octavo.core.report import text
from octavo.core.results.result import read_manifest
from octavo.core.storage.history import read_history
from octavo.core.storage.stores import is_url
from octavo.core.values.trial import Trial

from .console import out, show_json, table
from .face.early import existing
from .given.models import is_result


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("history")(history)


def history(
    store: Annotated[
        str,
        typer.Argument(
            help="History file (or database URL), or the folder of a saved result."
        ),
    ],
    study: Annotated[
        str | None,
        typer.Option(help="Name of the study in the store; default: its only one."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the trials of a run. The store is only read."""
    if not is_url(store):
        existing(
            store, "the history", "give the file that --storage named, or a result"
        )
    if is_result(Path(store)):
        manifest = read_manifest(Path(store))
        if "trials" not in manifest:
            raise ConfigError(
                f"{store} was quantized without a search: it has no trials"
            )
        with raised_as(
            ConfigError, f"the record of {store} is damaged", "save the result again"
        ):
            trials = tuple(
                Trial.from_json(t) for t in (manifest["baseline"], *manifest["trials"])
            )
        name = store
    else:
        name, trials, _ = read_history(store, study)
    if as_json:
        show_json([t.to_json() for t in trials])
        return
    out().print(trials_table(name, trials))


def trials_table(name: str, trials: tuple[Trial, ...]) -> object:
    """Return the table of trials, the float model first."""
    metrics = tuple(dict.fromkeys(m for t in trials for m in t.metrics))
    objectives = tuple(dict.fromkeys(o for t in trials for o in t.objectives))
    rows = []
    for trial in trials:
        scores = [text.score(trial, m) for m in metrics]
        costs = [text.relative(trial.objectives.get(o)) for o in objectives]
        seconds = f"{sum(trial.seconds.values()):.2f}"
        ops = text.bits(trial)
        backend = trial.recipe.backend
        rows.append(
            (trial.number, backend, ops, *scores, *costs, seconds, _state(trial))
        )
    searched = sum(trial.number > 0 for trial in trials)
    figures = (*metrics, *objectives, "seconds")
    columns = ("#", "backend", "ops", *figures, "state")
    title = f"{name}: {searched} trials"
    return table(columns, rows, title=title, right=("#", *figures))


def _state(trial: Trial) -> Text:
    """Return what became of a trial."""
    if not trial.number:
        return Text("float model")
    if trial.passed:
        return Text("passes", "green")
    if trial.state != "complete":
        return Text(trial.state)
    return Text("over budget" if trial.over else "does not pass")
