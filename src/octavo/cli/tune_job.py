"""What ``octavo tune`` does: everything is checked, read and opened, then searched, then told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from octavo.core.errors import MissingFramework, StoreError
from octavo.core.opening.config import TuningConfig
from octavo.core.quantizing.recovering import TrainFn
from octavo.core.report import report_data, write
from octavo.core.report.outcome import outcome
from octavo.core.report.summary import summary
from octavo.core.results.result import Result, check_target, read_manifest
from octavo.core.storage.aside import set_aside
from octavo.core.storage.history import read_history
from octavo.core.storage.stores import is_url
from octavo.core.system.signals import deferred_interrupts, terminate_as_interrupt
from octavo.core.tuning.progress import SAVING, Phase
from octavo.core.tuning.recovery.training import read_recovery
from octavo.core.tuning.run import autotune

from .console import out, say, show_json, warn
from .face.early import check_parts, check_storage, existing
from .face.failures import DONE, INTERRUPTED, NOT_REACHED, Interrupted
from .given.models import check_model, default_folder, named_object, source
from .given.scoring import Scored, Wanted, scored
from .progress import Show


@dataclass(frozen=True)
class Job:
    """A run that is ready to begin.

    Attributes:
        name: The model, as it was given.
        model: What that names.
        scored: How and on what.
        target: Folder of the result.
        storage: The history.
        train_fn: Trains the model where no trial passes; None where there is no such function.
    """

    name: str
    model: Any
    scored: Scored
    target: Path
    storage: str
    train_fn: TrainFn | None = None

    def run(self, command: str, *, quiet: bool, resume: bool) -> Ending:
        """Search, and save what was found.

        Signals end the run as a whole in peace: what was found is saved before the process ends.

        Args:
            command: How to do it again.
            quiet: Whether nothing is told on the way.
            resume: Whether a history that is there is continued.
        """
        kept = trials_kept(self.storage) if resume else 0
        told = self._told_where_trials_are(command)
        with terminate_as_interrupt(), told, Show(quiet) as show:
            result = autotune(
                self.model,
                self.scored.score,
                self.scored.batches,
                self.scored.settings,
                storage=self.storage,
                resume=resume,
                callbacks=(show,),
                arrays=self.scored.takes_arrays,
                train_fn=self.train_fn,
            )
            show.phase(Phase(SAVING))
            result = replace(result, command=command)
            with deferred_interrupts():
                folder = result.save(self.target)
        if kept and kept == len(result.trials) and not result.interrupted:
            say(
                f"no trial was run: {self.storage} held all {kept} of them (--fresh begins anew)"
            )
        return Ending(result, folder, Path(self.name).name)

    @contextmanager
    def _told_where_trials_are(self, command: str) -> Iterator[None]:
        """Say how to go on where a second Ctrl-C ends a run before its result is saved."""
        try:
            yield
        except KeyboardInterrupt as error:
            told = "interrupted before a result was saved"
            if trials_kept(self.storage):
                told += (
                    f"; finished trials are kept in {self.storage}. Again: {command}"
                )
            raise Interrupted(told) from error


@dataclass(frozen=True)
class Ending:
    """A run that ended and is saved.

    Attributes:
        result: What it found.
        folder: Where that is.
        title: Heading of the report.
    """

    result: Result
    folder: Path
    title: str

    @property
    def code(self) -> int:
        """The exit code."""
        if self.result.interrupted:
            return INTERRUPTED
        return DONE if self.result.goal_met else NOT_REACHED

    def tell(self, *, as_json: bool, with_report: bool) -> int:
        """Write the report, print the outcome, and return the exit code."""
        data = report_data(read_manifest(self.folder), self.title)
        page = self.folder / "report.html"
        if with_report:
            try:
                write(data, page)
            except MissingFramework as error:
                warn(error)
                with_report = False
        if as_json:
            told = outcome(data, self.folder)
            told["interrupted"] = self.result.interrupted
            told["report"] = str(page) if with_report else None
            show_json({**told, "exit_code": self.code})
            return self.code
        console = out()
        console.print(summary(data, self.folder), crop=False)
        console.print(f"result: {self.folder}", soft_wrap=True)
        if with_report:
            console.print(f"report: {page}", soft_wrap=True)
        console.print(f"history: {self.result.storage}", soft_wrap=True)
        return self.code


def prepared(
    model: str,
    config: Path | None,
    given: Mapping[str, Any],
    wanted: Wanted,
    output: Path | None,
    storage: str | None,
    train: str | None = None,
) -> Job:
    """Check everything that can be checked at once, then read the samples and make the model.

    Args:
        model: As it was given.
        config: A configuration file.
        given: Settings that override it.
        wanted: How and on what candidates are scored.
        output: Folder of the result.
        storage: The history.
        train: Names the function that trains.
    """
    if config is not None:
        existing(config, "--config", "give a .toml, .yaml or .json file")
    train_fn = None if train is None else named_object(train, "--train")
    settings = read_recovery(TuningConfig.read(config, **given), train_fn)
    settings = wanted.checked(settings)
    host = check_parts(settings)
    check_model(model, host)
    check_storage(storage)
    target = check_target(output or default_folder(model, "quantized"))
    opened, scores = scored(wanted, settings, host, lambda: source(model))
    kept_in = storage or f"{target}.db"
    return Job(model, opened, scores, target, kept_in, train_fn)


def trials_kept(storage: str) -> int:
    """Return how many trials a history file holds already; a database is not asked."""
    if is_url(storage) or not Path(storage).is_file():
        return 0
    try:
        _, trials, _ = read_history(storage)
    except StoreError:
        # The run says what is wrong with it.
        return 0
    return sum(trial.number > 0 for trial in trials)


def begin_anew(storage: str) -> None:
    """Set a history aside and say where it is."""
    moved = set_aside(storage)
    if moved is not None:
        say(f"--fresh: the history that was there is now {moved}")
