"""A stored run, read without changing it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from octavo.core.errors import StoreError, nearest
from octavo.core.system.redaction import redacted
from octavo.core.values.trial import Trial

from .rows import TRIAL, store_errors, timed_of, trial_of
from .stores import check_readable, connect, is_url

DEFAULT_NAME = "octavo"


def read_history(
    storage: str | Path, name: str | None = None
) -> tuple[str, tuple[Trial, ...], Mapping[str, Any]]:
    """Read a stored run without changing it: (study name, trials, user attributes).

    Args:
        storage: A file path (SQLite), or an SQLAlchemy URL.
        name: The study's; None for the first.

    Raises:
        StoreError: If there is no such store or study.
    """
    location = redacted(str(storage))
    url = _read_only(storage)
    with contextlib.ExitStack() as stack:
        store = connect(url, stack)
        with store_errors(location, url):
            studies = {s.study_name: s._study_id for s in store.get_all_studies()}
            chosen = name or next(iter(studies), DEFAULT_NAME)
            if chosen not in studies:
                raise StoreError(
                    f"{location} holds no study called {chosen!r}{nearest(chosen, studies)}"
                )
            study = studies[chosen]
            attributes = store.get_study_user_attrs(study)
            rows = [
                row.user_attrs for row in store.get_all_trials(study, deepcopy=False)
            ]
            searched = [trial_of(row, attributes) for row in rows if TRIAL in row]
            trials = [timed_of(trial, attributes) or trial for trial in searched]
            return chosen, tuple(sorted(trials, key=lambda t: t.number)), attributes


def _read_only(storage: str | Path) -> str:
    """Return the URL of a store; a file's says that it is not to be written.

    Raises:
        StoreError: If the file does not exist, or is no database.
    """
    text = str(storage)
    if is_url(text):
        return text
    path = Path(text)
    if not path.is_file():
        raise StoreError(
            f"{path} does not exist; give the file that a run's result.storage or --storage names"
        )
    check_readable(path)
    return f"sqlite:///file:{path.absolute()}?mode=ro&uri=true"
