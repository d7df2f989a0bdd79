"""The durable record of a run: each finished trial is on disk before the next begins.

One store for every strategy: an Optuna study (SQLite by default, one file; PostgreSQL by URL), so that optuna-dashboard
and every tool of that library can read it. A store that was made for another model, data or space is refused.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from .errors import StoreError, nearest
from .recipe import Recipe
from .trial import Trial

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

SCHEMA = 1
"""Version of what octavo writes into a study's user attributes."""

DEFAULT_NAME = "octavo"


class History:
    """Trials of one run, in memory only. The base of the durable one, and enough for tests and dry runs."""

    location = ""

    def __init__(self) -> None:
        self._trials: dict[int, Trial] = {}

    @property
    def trials(self) -> tuple[Trial, ...]:
        """Finished trials by number, the baseline (0) first."""
        return tuple(self._trials[n] for n in sorted(self._trials))

    def begin(self, number: int, recipe: Recipe) -> str:
        """Note that a trial starts. Returns an error text if this recipe ended its process twice before; else ''."""
        return ""

    def finish(self, trial: Trial) -> None:
        """Record a finished trial."""
        self._trials[trial.number] = trial

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
        directions: Sequence[str] = ("maximize",),
        resume: bool = True,
    ) -> None:
        super().__init__()
        self.location = str(storage)
        self.name = name
        self._ids: dict[int, int] = {}
        self._stack = contextlib.ExitStack()
        try:
            self._open(storage, fingerprint, directions, resume)
        except BaseException:
            self._stack.close()
            raise

    def _open(self, storage: str | Path, fingerprint: Mapping[str, str], directions: Sequence[str], resume: bool) -> None:
        url = _writable(storage, self._stack)
        self._storage = _connect(url, self._stack)
        with _store_errors(self.location):
            from optuna.exceptions import DuplicatedStudyError
            from optuna.study import StudyDirection

            ways = [StudyDirection.MAXIMIZE if d == "maximize" else StudyDirection.MINIMIZE for d in directions]
            try:
                self._study = self._storage.create_new_study(ways, self.name)
                self._storage.set_study_user_attr(self._study, "octavo:schema", SCHEMA)
                self._storage.set_study_user_attr(self._study, "octavo:fingerprint", dict(fingerprint))
            except DuplicatedStudyError:
                self._study = self._storage.get_study_id_from_name(self.name)
                self._check(fingerprint)
            _lock_server(self._storage, self.name, self._stack)
            self._read(resume)

    def _check(self, fingerprint: Mapping[str, str]) -> None:
        attributes = self._storage.get_study_user_attrs(self._study)
        schema = attributes.get("octavo:schema")
        if schema is None:
            raise StoreError(f"{self.location}: study {self.name!r} was not made by octavo; choose another name or file")
        if schema > SCHEMA:
            raise StoreError(
                f"{self.location}: study {self.name!r} was written by a newer octavo (schema {schema}, this one reads {SCHEMA}); upgrade octavo"
            )
        stored = attributes.get("octavo:fingerprint", {})
        other = sorted(k for k in {*stored, *fingerprint} if stored.get(k) != fingerprint.get(k))
        if other:
            raise StoreError(
                f"{self.location}: study {self.name!r} was made for another {', '.join(other)}; its trials cannot be compared with this run's. "
                "Give another history file (--storage, storage=) or another name of the study"
            )

    def _read(self, resume: bool) -> None:
        from optuna.trial import TrialState

        self._dead: dict[str, int] = {}
        refusals = self._storage.get_study_user_attrs(self._study)
        for frozen in self._storage.get_all_trials(self._study, deepcopy=False):
            attributes = frozen.user_attrs
            if "octavo:trial" in attributes and frozen.state.is_finished():
                trial = Trial.from_json(json.loads(attributes["octavo:trial"]))
                self._trials[trial.number] = _as_refused(trial, refusals)
                continue
            # Its process died in mid-trial: it is run again. A recipe that ended its process twice is not tried a third time.
            digest = attributes.get("octavo:recipe", "")
            self._dead[digest] = self._dead.get(digest, 0) + 1
            if not frozen.state.is_finished():
                self._storage.set_trial_state_values(frozen._trial_id, TrialState.FAIL)
        if self._trials and not resume:
            raise StoreError(
                f"{self.location}: study {self.name!r} already holds {len(self._trials)} trials; resume it (--resume, resume=True) or give another history file (--storage, storage=)"
            )

    def begin(self, number: int, recipe: Recipe) -> str:
        """Note that a trial starts, so that a crash can be told from a trial that never began."""
        died = self._dead.get(recipe.digest, 0)
        with _store_errors(self.location):
            self._ids[number] = self._storage.create_new_trial(self._study)
            self._storage.set_trial_user_attr(self._ids[number], "octavo:recipe", recipe.digest)
        return f"the process that ran this recipe died {died} times before; it is not tried again" if died >= 2 else ""

    def finish(self, trial: Trial) -> None:
        """Record a finished trial; when this returns it is on disk."""
        from optuna.trial import TrialState

        with _store_errors(self.location):
            row = self._ids.pop(trial.number)
            self._storage.set_trial_user_attr(row, "octavo:trial", json.dumps(_finite(trial.to_json())))
            values = _values(trial, len(self._storage.get_study_directions(self._study)))
            ended = TrialState.PRUNED if trial.state == "rejected" else TrialState.FAIL
            self._storage.set_trial_state_values(row, TrialState.COMPLETE if values else ended, values)
        super().finish(trial)

    def refuse(self, trial: Trial) -> None:
        """Record that a finished trial is refused; beside it, for a finished trial cannot be written again."""
        verdict = {"why": trial.refused, "margin": trial.margin}
        with _store_errors(self.location):
            self._storage.set_study_user_attr(self._study, _refusal_key(trial.number), verdict)
        super().refuse(trial)

    def close(self) -> None:
        """Release the store."""
        self._stack.close()


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


def _finite(value: Any) -> Any:
    """Replace infinities, which JSON cannot hold, by None."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and value in (float("inf"), float("-inf")) else value


def default_storage() -> Path:
    """Return a fresh SQLite path under $OCTAVO_HOME (~/.cache/octavo), for runs that were given none."""
    home = Path(os.environ.get("OCTAVO_HOME") or Path.home() / ".cache" / "octavo")
    return home / "runs" / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-{time.monotonic_ns() % 10**6}.db"


def _writable(storage: str | Path, stack: contextlib.ExitStack) -> str:
    """Return the URL of a store that can be written, and hold its lock until the stack closes."""
    text = str(storage)
    if "://" in text and not text.startswith("sqlite"):
        return text
    path = Path(text.split(":///", 1)[1] if text.startswith("sqlite") else text).expanduser().absolute()
    if path.is_dir():
        raise StoreError(f"{path} is a folder; give a file, for example {path / 'history.db'}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{path}.lock", timeout=0)
        lock.acquire()
    except Timeout as error:
        raise StoreError(f"{path} is in use by another run; wait for it, or give another file") from error
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error}; give a storage file in a writable folder") from error
    stack.callback(lock.release)
    if path.exists():
        if not os.access(path, os.W_OK):
            raise StoreError(f"{path} is read-only; make it writable or give another storage file")
        _check_file(path)
    return f"sqlite:///{path}"


def _check_file(path: Path) -> None:
    try:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            verdict = connection.execute("PRAGMA integrity_check").fetchone()[0]
    except sqlite3.DatabaseError as error:
        verdict = str(error)
    if verdict != "ok":
        aside = path.with_name(f"{path.name}.corrupt-{time.strftime('%Y%m%d-%H%M%S')}")
        path.rename(aside)
        raise StoreError(
            f"{path} is corrupt ({verdict}); it was set aside as {aside.name}. Start again with a fresh file, or recover it with sqlite3 .recover"
        )


def _connect(url: str, stack: contextlib.ExitStack) -> RDBStorage:
    import optuna
    from optuna.storages import RDBStorage

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        storage = RDBStorage(url)
    except RuntimeError as error:
        raise StoreError(f"{url}: the store was made by another version of Optuna: {error}") from error
    except Exception as error:  # SQLAlchemy and its drivers have families of their own
        raise StoreError(f"{_plain(url)} cannot be opened: {error}") from error
    stack.callback(storage.engine.dispose)
    return storage


def _plain(url: str) -> str:
    parts = urlsplit(url)
    return url.replace(f":{parts.password}@", ":***@") if parts.password else url


def _lock_server(storage: RDBStorage, name: str, stack: contextlib.ExitStack) -> None:
    """One run on one study of a database server, as the lock file says for SQLite."""
    if storage.engine.dialect.name != "postgresql":
        return
    from sqlalchemy import text

    connection = storage.engine.connect()
    stack.callback(connection.close)
    if not connection.execute(text("SELECT pg_try_advisory_lock(hashtext(:name))"), {"name": f"octavo:{name}"}).scalar():
        raise StoreError(f"study {name!r} is in use by another run; wait for it, or give another history file (--storage, storage=)")


@contextlib.contextmanager
def _store_errors(location: str) -> Iterator[None]:
    """Turn what the database raises (disk full, lost connection) into a StoreError that names the store."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", category=UserWarning)
            yield
    except StoreError:
        raise
    except Exception as error:
        from optuna.exceptions import OptunaError
        from sqlalchemy.exc import SQLAlchemyError

        if isinstance(error, (OptunaError, SQLAlchemyError, OSError)):
            raise StoreError(f"{location}: the history cannot be written or read: {error}. What was recorded before is kept") from error
        raise


def read_history(storage: str | Path, name: str | None = None) -> tuple[str, tuple[Trial, ...], Mapping[str, Any]]:
    """Read a stored run without changing it: (study name, trials, user attributes).

    Raises:
        StoreError: If there is no such store or study.
    """
    text = str(storage)
    path = Path(text)
    if "://" not in text and not path.is_file():
        raise StoreError(f"{path} does not exist; give the file that a run's result.storage or --storage names")
    with contextlib.ExitStack() as stack:
        url = text
        if "://" not in text:
            _check_readable(path)
            url = f"sqlite:///file:{path.absolute()}?mode=ro&uri=true"
        store = _connect(url, stack)
        with _store_errors(text):
            studies = {s.study_name: s._study_id for s in store.get_all_studies()}
            chosen = name or next(iter(studies), DEFAULT_NAME)
            if chosen not in studies:
                raise StoreError(f"{text} holds no study called {chosen!r}{nearest(chosen, studies)}")
            attributes = store.get_study_user_attrs(studies[chosen])
            found = [
                _as_refused(Trial.from_json(json.loads(t.user_attrs["octavo:trial"])), attributes)
                for t in store.get_all_trials(studies[chosen], deepcopy=False)
                if "octavo:trial" in t.user_attrs
            ]
            return chosen, tuple(sorted(found, key=lambda t: t.number)), attributes


def _check_readable(path: Path) -> None:
    try:
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            connection.execute("SELECT name FROM sqlite_master LIMIT 1").fetchone()
    except sqlite3.DatabaseError as error:
        raise StoreError(f"{path} is no readable history: {error}") from error
