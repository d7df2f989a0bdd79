"""The durable record of a run: each finished trial is on disk before the next begins.

One store for every strategy: an Optuna study (SQLite by default, one file; PostgreSQL by URL), so that optuna-dashboard
and every tool of that library can read it. A store that was made for another model, data or space is refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.core.errors import StoreError, nearest, said
from octavo.core.system.crashes import CrashWatch, cause_of_death
from octavo.core.system.redaction import redacted
from octavo.core.system.signals import deferred_interrupts
from octavo.core.values.json_form import without_infinities
from octavo.core.values.recipe import Recipe
from octavo.core.values.trial import Trial

from .differences import explain
from .server_lock import ServerLock
from .stores import check_readable, connect, default_storage, home, writable

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

SCHEMA = 1
"""Version of what octavo writes into a study's user attributes."""

DEFAULT_NAME = "octavo"

REMEDY = (
    "Its trials cannot be compared with this run's. Start a study of its own: another name (study=) or another history "
    "file (--storage, storage=); where a fresh start is meant, resume=False refuses every study that has trials"
)

CRASHES = 2
"""How often the process must have crashed in a recipe until that is not tried again."""


class History:
    """Trials of one run, in memory only. The base of the durable one, and enough for tests and dry runs."""

    location = ""
    notes: tuple[str, ...] = ()
    """What the user should know of how the run before ended."""

    name = ""

    def __init__(self) -> None:
        self._trials: dict[int, Trial] = {}
        self._facts: dict[str, Any] = {}

    @property
    def trials(self) -> tuple[Trial, ...]:
        """Finished trials by number, the baseline (0) first."""
        return tuple(self._trials[n] for n in sorted(self._trials))

    def begin(self, number: int, recipe: Recipe) -> str:
        """Note that a trial starts. Returns an error text if its process crashed in this recipe twice before; else ''."""
        return ""

    def interrupt(self, number: int) -> None:
        """Note that a trial was ended from outside (Ctrl-C, a signal), through no fault of its recipe."""

    def finish(self, trial: Trial) -> None:
        """Record a finished trial."""
        self._trials[trial.number] = trial

    def fact(self, key: str) -> Any:
        """Return a recorded fact of the run, None where there is none."""
        return self._facts.get(key)

    def keep(self, key: str, value: Any) -> Any:
        """Record a JSON-ready fact of the run if there is none of that name yet; return what is recorded."""
        if self.fact(key) is None:
            self._record(key, value)
        return self.fact(key)

    def _record(self, key: str, value: Any) -> None:
        self._facts[key] = value

    def refuse_resume(self, why: str) -> StoreError:
        """Return the error of a run that may not go on from this history."""
        return StoreError(f"study {self.name!r} was made for another run: {why}. {REMEDY}")

    def refuse(self, trial: Trial) -> None:
        """Record that a finished trial is refused after all; ``trial`` says why."""
        self._trials[trial.number] = trial

    def close(self) -> None:
        """Release the store."""


class StudyHistory(History):
    """Trials of one run in an Optuna study.

    Args:
        storage: A file path (SQLite), or an SQLAlchemy URL (``postgresql+psycopg://...``).
        name: The study's name in that store.
        fingerprint: What must be the same for trials to be comparable: digests of model, data, space, goal.
        settings: What shaped the search space, to say which setting changed it.
        directions: ``maximize``/``minimize`` of the values, metric first; shown by dashboards.
        resume: Whether a study that has trials may be continued.

    Raises:
        StoreError: If the store is corrupt (it is set aside, never overwritten), busy, read-only, too new, or made for
            another fingerprint.
    """

    def __init__(
        self,
        storage: str | Path,
        *,
        name: str = DEFAULT_NAME,
        fingerprint: Mapping[str, str],
        settings: Mapping[str, Any] | None = None,
        directions: Sequence[str] = ("maximize",),
        resume: bool = True,
    ) -> None:
        super().__init__()
        self.location = redacted(storage)
        self.name = name
        self._ids: dict[int, int] = {}
        self._lock: ServerLock | None = None
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
            from optuna.exceptions import DuplicatedStudyError
            from optuna.study import StudyDirection

            if self._storage.engine.dialect.name == "postgresql":
                # Before anything is written: of two first runs on one study one finds it in use.
                self._lock = ServerLock(self._storage.engine, self.name)
                self._stack.callback(self._lock.close)
            ways = [
                StudyDirection.MAXIMIZE if d == "maximize" else StudyDirection.MINIMIZE
                for d in directions
            ]
            try:
                self._study = self._storage.create_new_study(ways, self.name)
                self._storage.set_study_user_attr(self._study, "octavo:schema", SCHEMA)
                self._storage.set_study_user_attr(
                    self._study, "octavo:fingerprint", dict(fingerprint)
                )
                self._storage.set_study_user_attr(self._study, "octavo:settings", dict(settings))
            except DuplicatedStudyError:
                self._study = self._storage.get_study_id_from_name(self.name)
                self._check(fingerprint, settings)
            self._read(resume)
        self._watch = CrashWatch(_faults_file(url, self.name))
        self._stack.callback(self._watch.close)

    def _check(self, fingerprint: Mapping[str, str], settings: Mapping[str, Any]) -> None:
        attributes = self._storage.get_study_user_attrs(self._study)
        schema = attributes.get("octavo:schema")
        if schema is None:
            raise StoreError(
                f"{self.location}: study {self.name!r} was not made by octavo; choose another name or file"
            )
        if schema > SCHEMA:
            raise StoreError(
                f"{self.location}: study {self.name!r} was written by a newer octavo (schema {schema}, this one reads {SCHEMA}); upgrade octavo"
            )
        stored = attributes.get("octavo:fingerprint", {})
        if other := explain(stored, fingerprint, attributes.get("octavo:settings", {}), settings):
            raise StoreError(f"{self.location}: study {self.name!r} was made for {other}. {REMEDY}")
        if unsaid := [key for key in fingerprint if key not in stored]:
            self.notes = (
                *self.notes,
                f"study {self.name!r} was made by an older octavo, which did not record {', '.join(unsaid)}: taken as "
                "this run's, and compared from now on",
            )
            self._storage.set_study_user_attr(
                self._study, "octavo:fingerprint", {**stored, **fingerprint}
            )

    def _read(self, resume: bool) -> None:
        refusals = self._storage.get_study_user_attrs(self._study)
        unfinished: list[FrozenTrial] = []
        for frozen in self._storage.get_all_trials(self._study, deepcopy=False):
            attributes = frozen.user_attrs
            if "octavo:trial" in attributes and frozen.state.is_finished():
                trial = Trial.from_json(json.loads(attributes["octavo:trial"]))
                self._trials[trial.number] = _as_refused(trial, refusals)
            else:
                unfinished.append(frozen)
        self._learn_how_they_ended(unfinished)
        if self._trials and not resume:
            raise StoreError(
                f"{self.location}: study {self.name!r} already holds {len(self._trials)} trials; resume it (--resume, resume=True) or give another history file (--storage, storage=)"
            )

    def _learn_how_they_ended(self, unfinished: Sequence[FrozenTrial]) -> None:
        """Tell trials in which the process crashed from those that were ended from outside: those are just run again."""
        from optuna.trial import TrialState

        self._crashed: dict[str, list[str]] = {}
        vanished = 0
        for frozen in unfinished:
            attributes = frozen.user_attrs
            cause = str(attributes.get("octavo:crashed", ""))
            if not frozen.state.is_finished():
                cause = cause_of_death(attributes.get("octavo:process", {}))
                vanished += not cause
                if cause:
                    self._storage.set_trial_user_attr(frozen._trial_id, "octavo:crashed", cause)
                self._storage.set_trial_state_values(frozen._trial_id, TrialState.FAIL)
            if cause:
                self._crashed.setdefault(attributes.get("octavo:recipe", ""), []).append(cause)
        if vanished:
            self.notes = (
                *self.notes,
                "the process before this one ended in mid-trial without a sign of a fault of its own (killed, "
                "preempted or cut off); that trial is run again. Should it be the recipe that needs too much "
                "memory, executor='process' lets it end the trial and not the run",
            )

    def begin(self, number: int, recipe: Recipe) -> str:
        """Note that a trial starts, so that a crash can be told from a trial that never began.

        Raises:
            StoreError: If the store cannot be written, or another run took the study.
        """
        causes = self._crashed.get(recipe.digest, [])
        with self._errors():
            if self._lock is not None:
                self._lock.check()
            row = self._ids[number] = self._storage.create_new_trial(self._study)
            self._storage.set_trial_user_attr(row, "octavo:recipe", recipe.digest)
            self._storage.set_trial_user_attr(row, "octavo:process", self._watch.mark())
        if len(causes) < CRASHES:
            return ""
        return (
            f"the process crashed by itself in this recipe {len(causes)} times before ({', '.join(causes)}); it is not "
            "tried again. executor='process' lets a crash end a trial and not the run"
        )

    def fact(self, key: str) -> Any:
        """Return a recorded fact of the run, None where there is none."""
        with self._errors():
            return self._storage.get_study_user_attrs(self._study).get(f"octavo:{key}")

    def _record(self, key: str, value: Any) -> None:
        with self._errors():
            self._storage.set_study_user_attr(self._study, f"octavo:{key}", value)

    def interrupt(self, number: int) -> None:
        """Note that a trial was ended from outside; its recipe is run again when the study is resumed."""
        from optuna.trial import TrialState

        row = self._ids.pop(number, None)
        if row is not None:
            with self._errors():
                self._storage.set_trial_state_values(row, TrialState.FAIL)

    def finish(self, trial: Trial) -> None:
        """Record a finished trial; when this returns it is on disk. A signal that comes meanwhile is heard after it."""
        with deferred_interrupts():
            self._write(trial)
            super().finish(trial)

    def _write(self, trial: Trial) -> None:
        from optuna.trial import TrialState

        with self._errors():
            if self._lock is not None:
                self._lock.check()
            row = self._ids.pop(trial.number)
            self._storage.set_trial_user_attr(
                row, "octavo:trial", json.dumps(without_infinities(trial.to_json()))
            )
            values = _values(trial, len(self._storage.get_study_directions(self._study)))
            ended = TrialState.PRUNED if trial.state == "rejected" else TrialState.FAIL
            self._storage.set_trial_state_values(
                row, TrialState.COMPLETE if values else ended, values
            )

    def refuse(self, trial: Trial) -> None:
        """Record that a finished trial is refused; beside it, for a finished trial cannot be written again."""
        verdict = {"why": trial.refused, "margin": trial.margin}
        with self._errors():
            self._storage.set_study_user_attr(self._study, _refusal_key(trial.number), verdict)
        super().refuse(trial)

    def close(self) -> None:
        """Release the store."""
        self._stack.close()

    def _errors(self) -> contextlib.AbstractContextManager[None]:
        return _store_errors(self.location, self._url)


def _refusal_key(number: int) -> str:
    return f"octavo:refused:{number}"


def _as_refused(trial: Trial, attributes: Mapping[str, Any]) -> Trial:
    """Return a trial with what was found out about it after it had ended."""
    verdict = attributes.get(_refusal_key(trial.number))
    if verdict is None:
        return trial
    return replace(trial, passed=False, margin=verdict["margin"], refused=verdict["why"])


def _values(trial: Trial, count: int) -> list[float] | None:
    """Metric, then objectives: what dashboards plot. A trial without one of them counts as failed there only."""
    if trial.state != "complete":
        return None
    values = [next(iter(trial.metrics.values())), *(m.value for m in trial.objectives.values())]
    return values if len(values) == count else None


@contextlib.contextmanager
def _store_errors(location: str, url: str) -> Iterator[None]:
    """Turn what the database raises (disk full, lost connection) into a StoreError that names the store."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", category=UserWarning)
            yield
    except StoreError:
        raise
    except Exception as error:
        # The database, and rows that are not what was written: their kinds cannot be listed.
        why = redacted(said(error), url)
        # Without the cause where it would show what is hidden here.
        cause = error if why == said(error) else None
        raise StoreError(
            f"{location}: the history cannot be written or read: {why}. What was recorded before is kept"
        ) from cause


def read_history(
    storage: str | Path, name: str | None = None
) -> tuple[str, tuple[Trial, ...], Mapping[str, Any]]:
    """Read a stored run without changing it: (study name, trials, user attributes).

    Raises:
        StoreError: If there is no such store or study.
    """
    text = str(storage)
    path = Path(text)
    if "://" not in text and not path.is_file():
        raise StoreError(
            f"{path} does not exist; give the file that a run's result.storage or --storage names"
        )
    with contextlib.ExitStack() as stack:
        url = text
        if "://" not in text:
            check_readable(path)
            url = f"sqlite:///file:{path.absolute()}?mode=ro&uri=true"
        store = connect(url, stack)
        with _store_errors(redacted(text), url):
            studies = {s.study_name: s._study_id for s in store.get_all_studies()}
            chosen = name or next(iter(studies), DEFAULT_NAME)
            if chosen not in studies:
                raise StoreError(
                    f"{redacted(text)} holds no study called {chosen!r}{nearest(chosen, studies)}"
                )
            attributes = store.get_study_user_attrs(studies[chosen])
            found = [
                _as_refused(Trial.from_json(json.loads(t.user_attrs["octavo:trial"])), attributes)
                for t in store.get_all_trials(studies[chosen], deepcopy=False)
                if "octavo:trial" in t.user_attrs
            ]
            return chosen, tuple(sorted(found, key=lambda t: t.number)), attributes


def _faults_file(url: str, name: str) -> Path:
    """Return where a crash of this run's process leaves its trace: beside a file, else with octavo's own files."""
    if url.startswith("sqlite:///"):
        path = Path(url.removeprefix("sqlite:///"))
        return path.with_name(f"{path.name}.faults")
    digest = hashlib.sha256(f"{redacted(url)} {name}".encode()).hexdigest()[:16]
    return home() / "faults" / f"{digest}.txt"


__all__ = ["DEFAULT_NAME", "History", "StudyHistory", "default_storage", "read_history"]
