"""``octavo history``: the trials of a run, finished or not, from its store or its saved result."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from octavo.core.errors import ConfigError, raised_as
from octavo.core.report.trial_tables import trials_table
from octavo.core.results.result import read_manifest
from octavo.core.storage.history import read_history
from octavo.core.storage.stores import is_url
from octavo.core.values.trial import Trial

from .console import out, show_json
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
    searched = sum(trial.number > 0 for trial in trials)
    out().print(trials_table(f"{name}: {searched} trials", trials))
