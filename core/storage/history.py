"""The durable record of a run: each finished trial is on disk before the next begins.

One store for every strategy: an Optuna study (SQLite by default, one file; PostgreSQL by URL), so
that optuna-dashboard and every tool of that library can read it. A store that was made for another
model, data or space is refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from octavo.core.errors import StoreError
from octavo.core.system.crashes import CrashWatch
from octavo.core.system.redaction import redacted
from octavo.core.system.signals import deferred_interrupts
from octavo.core.values.recipe import Recipe
from octavo.core.values.trial import Trial

from .axes import METRIC_NAMES, Axes, Parameters
from .crashed import Crashed, faults_file
from .differences import explain
from .reading import DEFAULT_NAME, read_history
from .record import REMEDY, History
from .rows import (
    TRIAL,
    begun_trial,
    refusal_key,
    store_errors,
    timed_key,
    timed_of,
    timed_rows,
    trial_of,
    trial_text,
    values_of,
)
from .server_lock import ServerLock
from .stores import connect, default_storage, writable

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

SCHEMA = 1
"""Version of what octavo writes into a study's user attributes."""


class Earlier(NamedTuple):
    """What a study of an earlier version has that this run has another of.

    Attributes:
        fingerprint: This run's, as that version had it.
        axes: Of the spaces that it had.
        note: What is told of a study that goes on as one of that version.
    """

    fingerprint: Mapping[str, str]
    axes: Axes
    note: str


class StudyHistory(History):
    """Trials of one run in an Optuna study.

    Args:
        storage: A file path (SQLite), or an SQLAlchemy URL (``postgresql+psycopg://...``).
        name: The study's name in that store.
        fingerprint: What must be the same for trials to be comparable: digests of model, data,
            space, goal.
        settings: What shaped the search space, to say which setting changed it.
        directions: ``maximize``/``minimize`` of the values, metric first; shown by dashboards.
        axes: How recipes read as parameters; shown by dashboards too.
        earlier: Yields what else a study may be made for that is gone on with; asked where needed.
        resume: Whether a study that has trials may be continued.

    Attributes:
        gone_on_as: Which of ``earlier`` the study is; None where it is of this run.

    Raises:
        StoreError: If the store is corrupt (it is set aside, never overwritten), busy, read-only,
            too new, or made for another fingerprint.
    """

    def __init__(
        self,
        storage: str | Path,
        *,
        name: str = DEFAULT_NAME,
        fingerprint: Mapping[str, str],
        settings: Mapping[str, Any] | None = None,
        directions: Sequence[str] = ("maximize",),
        axes: Axes | None = None,
        earlier: Callable[[], Iterable[Earlier]] = tuple,
        resume: bool = True,
    ) -> None:
        super().__init__()
        self.gone_on_as: Earlier | None = None
        self._earlier = earlier
        self.location = redacted(storage)
        self.name = name
        self._ids: dict[int, int] = {}
        self._lock: ServerLock | None = None
        self._axes = axes or Axes()
        self._is_named = False
        self._stack = contextlib.ExitStack()
        try:
            self._open(storage, fingerprint, settings or {}, directions, resume)
        except BaseException:
            self._stack.close()
            raise

    def _open(
        self,
        storage: str | Path,
        fingerprint: Mapping[str, str],
        settings: Mapping[str, Any],
        directions: Sequence[str],
        resume: bool,
    ) -> None:
        url = writable(storage, self._stack)
        self._url = url
        self._storage = connect(url, self._stack)
        with self._errors():
            if self._storage.engine.dialect.name == "postgresql":
                # Before anything is written: of two first runs on one study one finds it in use.
                self._lock = ServerLock(self._storage.engine, self.name)
                self._stack.callback(self._lock.close)
            self._enter(fingerprint, settings, directions)
            self._read(resume)
        self._watch = CrashWatch(faults_file(url, self.name))
        self._stack.callback(self._watch.close)

    def _enter(
        self,
        fingerprint: Mapping[str, str],
        settings: Mapping[str, Any],
        directions: Sequence[str],
    ) -> None:
        """Make the study, or check the one that is there."""
        from optuna.exceptions import DuplicatedStudyError
        from optuna.study import StudyDirection

        maximize, minimize = StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE
        ways = [maximize if d == "maximize" else minimize for d in directions]
        try:
            self._study = self._storage.create_new_study(ways, self.name)
        except DuplicatedStudyError:
            self._study = self._storage.get_study_id_from_name(self.name)
            self._check(fingerprint, settings)
            return
        self._note("schema", SCHEMA)
        self._note("fingerprint", dict(fingerprint))
        self._note("settings", dict(settings))

    def _note(self, key: str, value: Any) -> None:
        """Write an attribute of the study."""
        self._storage.set_study_user_attr(self._study, f"octavo:{key}", value)

    def _check(
        self, fingerprint: Mapping[str, str], settings: Mapping[str, Any]
    ) -> None:
        study = f"{self.location}: study {self.name!r}"
        attributes = self._storage.get_study_user_attrs(self._study)
        schema = attributes.get("octavo:schema")
        if schema is None:
            raise StoreError(
                f"{study} was not made by octavo; choose another name or file"
            )
        if schema > SCHEMA:
            raise StoreError(
                f"{study} was written by a newer octavo (schema {schema}, "
                f"this one reads {SCHEMA}); upgrade octavo"
            )
        stored = attributes.get("octavo:fingerprint", {})
        shaped = attributes.get("octavo:settings", {})
        if other := explain(stored, fingerprint, shaped, settings):
            for earlier in self._earlier():
                if not explain(stored, earlier.fingerprint, shaped, settings):
                    self._go_on_as(earlier)
                    fingerprint = earlier.fingerprint
                    break
            else:
                raise StoreError(f"{study} was made for {other}. {REMEDY}")
        unsaid = [key for key in fingerprint if key not in stored]
        if not unsaid:
            return
        # A run that recovered nothing says nothing of it: one that does may go on from it.
        if older := [key for key in unsaid if key != "recover"]:
            self.notes += (
                f"study {self.name!r} was made by an older octavo, which did not record "
                f"{', '.join(older)}: taken as this run's, and compared from now on",
            )
        self._note("fingerprint", {**stored, **fingerprint})

    def _go_on_as(self, earlier: Earlier) -> None:
        """Take a study for one of an earlier version, which its new trials go on as."""
        self.gone_on_as = earlier
        self._axes = earlier.axes
        self.notes += (f"study {self.name!r} {earlier.note}",)

    def _read(self, resume: bool) -> None:
        found_later = self._storage.get_study_user_attrs(self._study)
        unfinished: list[FrozenTrial] = []
        rows = self._storage.get_all_trials(self._study, deepcopy=False)
        self._parameters = Parameters(self._axes, rows)
        for frozen in rows:
            if TRIAL in frozen.user_attrs and frozen.state.is_finished():
                trial = trial_of(frozen.user_attrs, found_later)
                self._trials[trial.number] = trial
                timed = timed_of(trial, found_later)
                if timed is not None:
                    super().retime(timed)
            else:
                unfinished.append(frozen)
        self._crashed = Crashed(self._storage, unfinished)
        if self._crashed.note:
            self.notes += (self._crashed.note,)
        for trial in self._trials.values():
            # A study of an earlier octavo has no names yet.
            self._name_values(trial)
        if self._trials and not resume:
            raise StoreError(
                f"{self.location}: study {self.name!r} already holds {len(self._trials)} trials; "
                "resume it (--resume, resume=True) or give another history file (--storage, "
                "storage=)"
            )

    def begin(self, number: int, recipe: Recipe) -> str:
        """Note that a trial starts, so that a crash can be told from a trial that never began.

        Raises:
            StoreError: If the store cannot be written, or another run took the study.
        """
        with self._errors():
            if self._lock is not None:
                self._lock.check()
            begun = begun_trial(recipe.digest, self._watch.mark())
            row = self._storage.create_new_trial(self._study, begun)
            self._ids[number] = row
            self._parameters.write(self._storage, row, recipe)
        return self._crashed.refusal(recipe.digest)

    def fact(self, key: str) -> Any:
        """Return a recorded fact of the run, None where there is none."""
        with self._errors():
            return self._storage.get_study_user_attrs(self._study).get(f"octavo:{key}")

    def _record(self, key: str, value: Any) -> None:
        with self._errors():
            self._note(key, value)

    def interrupt(self, number: int) -> None:
        """Note that a trial was ended from outside.

        Its recipe is run again when the study is resumed.
        """
        from optuna.trial import TrialState

        row = self._ids.pop(number, None)
        if row is not None:
            with self._errors():
                self._storage.set_trial_state_values(row, TrialState.FAIL)

    def finish(self, trial: Trial) -> None:
        """Record a finished trial; when this returns it is on disk.

        A signal that comes meanwhile is heard after it.
        """
        with deferred_interrupts():
            self._write(trial)
            super().finish(trial)

    def _write(self, trial: Trial) -> None:
        from optuna.trial import TrialState

        with self._errors():
            if self._lock is not None:
                self._lock.check()
            row = self._ids.pop(trial.number)
            self._storage.set_trial_user_attr(row, TRIAL, trial_text(trial))
            values = values_of(
                trial, len(self._storage.get_study_directions(self._study))
            )
            self._name_values(trial)
            if values:
                state = TrialState.COMPLETE
            elif trial.state == "rejected":
                state = TrialState.PRUNED
            else:
                state = TrialState.FAIL
            self._storage.set_trial_state_values(row, state, values)

    def _name_values(self, trial: Trial) -> None:
        """Say once what the values of all trials are."""
        if self._is_named:
            return
        count = len(self._storage.get_study_directions(self._study))
        if values_of(trial, count) is None:
            return
        names = [next(iter(trial.metrics)), *trial.objectives]
        known = self._storage.get_study_system_attrs(self._study)
        if not known.get(METRIC_NAMES):
            self._storage.set_study_system_attr(self._study, METRIC_NAMES, names)
        self._is_named = True

    def refuse(self, trial: Trial) -> None:
        """Record that a finished trial is refused.

        Beside it, for a finished trial cannot be written again.
        """
        verdict = {"why": trial.refused, "margin": trial.margin}
        with self._errors():
            self._storage.set_study_user_attr(
                self._study, refusal_key(trial.number), verdict
            )
        super().refuse(trial)

    def retime(self, trial: Trial) -> None:
        """Record what a finished trial measured in a last timing, beside it as a refusal is."""
        with self._errors():
            self._storage.set_study_user_attr(
                self._study, timed_key(trial.number), timed_rows(trial)
            )
        super().retime(trial)

    def close(self) -> None:
        """Release the store; a signal that comes meanwhile is heard after it."""
        with deferred_interrupts():
            self._stack.close()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Let what the database raises name the store, and signals wait until it has answered.

        A signal inside of it would be raised wherever its pool of connections is just then, and
        could leave half of a trial.
        """
        with deferred_interrupts(), store_errors(self.location, self._url):
            yield


__all__ = ["DEFAULT_NAME", "History", "StudyHistory", "default_storage", "read_history"]
