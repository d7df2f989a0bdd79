"""``octavo history``: the trials of a run, finished or not; or the runs that are kept, whose old
ones can be deleted."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from octavo.core.errors import ConfigError, raised_as
from octavo.core.opening.durations import seconds
from octavo.core.report import text
from octavo.core.report.tables import table
from octavo.core.report.trial_tables import trials_table
from octavo.core.results.result import read_manifest
from octavo.core.storage.history import read_history
from octavo.core.storage.kept import DAMAGED, KeptRun, folder, kept_runs, prune
from octavo.core.storage.stores import is_url
from octavo.core.values.trial import Trial

from .console import out, say, show_json
from .face.early import existing
from .face.options import INPUT, OUTPUT, AsJson, option
from .given.models import is_result

EXAMPLES = """
octavo history model-quantized
octavo history model-quantized.db --json
octavo history
octavo history --prune 30d
"""

_STORE = "History file (or database URL), or a saved result; left out: the runs that are kept."
_STUDY = "Study in the store; left out: its first one."
_PRUNE = "Delete kept runs that were last written longer ago: 30d, 12h, 0 for all."


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("history", epilog=EXAMPLES)(history)


def history(
    store: Annotated[
        str | None,
        typer.Argument(metavar="RUN", help=_STORE, rich_help_panel=INPUT),
    ] = None,
    study: Annotated[str | None, option(INPUT, "NAME", _STUDY)] = None,
    prune_older: Annotated[
        str | None, option(OUTPUT, "TIME", _PRUNE, "--prune")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the trials of a run; without one, the runs that octavo keeps in its own folder.

    A run is only read. --prune is the one thing that deletes.
    """
    if store is None:
        _kept(prune_older, as_json)
        return
    if prune_older is not None:
        raise ConfigError("--prune deletes kept runs: give it without a run")
    name, trials = _trials(store, study)
    if as_json:
        show_json([t.to_json() for t in trials])
        return
    searched = sum(trial.number > 0 for trial in trials)
    out().print(trials_table(f"{name}: {searched} trials", trials))


def _trials(store: str, study: str | None) -> tuple[str, tuple[Trial, ...]]:
    """Return the name of a run and its trials, the float model's first."""
    if not is_url(store):
        existing(store, "the run", "give the file that --storage named, or a result")
    if not is_url(store) and Path(store).is_dir() and not is_result(Path(store)):
        raise ConfigError(f"the run: {store} is a folder and no saved result")
    if not is_result(Path(store)):
        name, trials, _ = read_history(store, study)
        return name, trials
    manifest = read_manifest(Path(store))
    if "trials" not in manifest:
        raise ConfigError(f"{store} was quantized without a search: it has no trials")
    damaged = f"the record of {store} is damaged"
    with raised_as(ConfigError, damaged, "save the result again"):
        rows = (manifest["baseline"], *manifest["trials"])
        return store, tuple(Trial.from_json(row) for row in rows)


def _kept(older_than: str | None, as_json: bool) -> None:
    """List the runs that are kept, when old ones are deleted if that is asked for."""
    deleted: Sequence[KeptRun] = ()
    if older_than is not None:
        limit = seconds(older_than)
        assert limit is not None, "a text is a duration or an error"
        deleted, in_use = prune(limit)
        freed = text.size(sum(run.bytes for run in deleted))
        say(f"{len(deleted)} runs deleted, {freed}")
        for run in in_use:
            say(f"{run.path} is in use and was kept")
    runs = kept_runs()
    if as_json:
        rows = [_run_facts(run) for run in runs]
        show_json({"folder": str(folder()), "deleted": len(deleted), "runs": rows})
        return
    console = out()
    if not runs:
        console.print(f"no runs are kept in {folder()}", soft_wrap=True)
        return
    console.print(table(("run", "trials", "size", "last written"), map(_row, runs)))
    total = text.size(sum(run.bytes for run in runs))
    console.print(f"{len(runs)} runs in {folder()}, {total}", soft_wrap=True)
    if older_than is None:
        console.print("delete old ones: octavo history --prune 30d", soft_wrap=True)


def _row(run: KeptRun) -> tuple[str, ...]:
    trials = "damaged" if run.trials == DAMAGED else str(run.trials)
    return run.path.name, trials, text.size(run.bytes), _when(run)


def _when(run: KeptRun) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(run.written))


def _run_facts(run: KeptRun) -> dict[str, Any]:
    return {
        "path": str(run.path),
        "bytes": run.bytes,
        "trials": None if run.trials == DAMAGED else run.trials,
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(run.written)),
    }
