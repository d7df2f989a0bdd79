"""Where histories are kept: SQLite files and database servers, opened with care."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import Timeout

from octavo.core.errors import StoreError
from octavo.core.system.redaction import redacted
from octavo.core.system.textfiles import absolute

from .file_lock import held

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

OPENINGS = 6
"""How often a server's store is opened.

Of two first runs on one database one meets half-made tables.
"""

_PATIENCE = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
"""How libpq notices within a minute that a server is gone.

Where a router just forgets a connection.
"""


_SQLITE = b"SQLite format 3\x00"
"""How every SQLite file begins."""

_DATABASES = (".db", ".sqlite", ".sqlite3")
"""Ends of names by which a file is known for a history, damaged or not."""


def home() -> Path:
    """Return the folder of octavo's own files: $OCTAVO_HOME, or ~/.cache/octavo."""
    return Path(os.environ.get("OCTAVO_HOME") or Path.home() / ".cache" / "octavo")


def default_storage() -> Path:
    """Return a fresh SQLite path for a run that was given none: ``runs`` in :func:`home`.

    Such runs are kept for a while (:mod:`.kept`); ``Result.storage`` names the file.
    """
    began = time.strftime("%Y%m%d-%H%M%S")
    # Two runs may begin in one second, and in one process.
    return home() / "runs" / f"{began}-{os.getpid()}-{time.monotonic_ns() % 10**6}.db"


def is_url(text: str) -> bool:
    """Return whether a store is named by a URL, and not as a file."""
    return "://" in text


def writable(storage: str | Path, stack: contextlib.ExitStack) -> str:
    """Return the URL of a store that can be written, and hold its lock until the stack closes."""
    text = str(storage)
    if is_url(text) and not text.startswith("sqlite"):
        return text
    path = absolute(sqlite_path(text), "a history")
    if path.is_dir():
        raise StoreError(
            f"{path} is a folder; give a file, for example {path / 'history.db'}"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stack.enter_context(held(path))
    except Timeout as error:
        raise StoreError(
            f"{path} is in use by another run; wait for it, or give another file"
        ) from error
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written: {error}; give a storage file in a writable folder"
        ) from error
    if path.exists():
        if not os.access(path, os.W_OK):
            raise StoreError(
                f"{path} is read-only; make it writable or give another storage file"
            )
        _check_kind(path)
        _check_file(path)
    return f"sqlite:///{path}"


def sqlite_path(text: str) -> str:
    """Return the path of a SQLite file, which is given as it is or as a URL.

    Raises:
        StoreError: If the URL names no file.
    """
    # A file may be called sqlite.db; only a URL has the three slashes.
    scheme, slashes, rest = text.partition(":///")
    if is_url(text) and not slashes:
        raise StoreError(
            f"{text} keeps nothing after the process ends; give a file, for example history.db"
        )
    return rest if slashes and scheme.startswith("sqlite") else text


def _check_kind(path: Path) -> None:
    """Refuse a file of another kind, and leave it as it is: SQLite takes a short one for an empty
    database, and would write over it.

    Raises:
        StoreError: If it begins as no history does and is not called as one.
    """
    with path.open("rb") as file:
        head = file.read(len(_SQLITE))
    if head and head != _SQLITE and path.suffix not in _DATABASES:
        raise StoreError(
            f"{path} is a file of another kind and no history; give another file, for example "
            f"{path.with_suffix('.db')}"
        )


def _check_file(path: Path) -> None:
    try:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            verdict = connection.execute("PRAGMA integrity_check").fetchone()[0]
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        # SQLite's own report may quote bytes of the file that are no text.
        verdict = str(error)
    if verdict != "ok":
        aside = path.with_name(f"{path.name}.corrupt-{time.strftime('%Y%m%d-%H%M%S')}")
        path.rename(aside)
        raise StoreError(
            f"{path} is corrupt ({verdict}); it was set aside as {aside.name}. "
            "Start again with a fresh file, or recover it with sqlite3 .recover"
        )


def connect(url: str, stack: contextlib.ExitStack) -> RDBStorage:
    """Open a store by its URL, until the stack closes.

    Raises:
        StoreError: If it cannot be opened.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = _opened(url)
    stack.callback(storage.engine.dispose)
    return storage


def _opened(url: str) -> RDBStorage:
    from optuna.storages import RDBStorage

    # A connection that the server ended while a trial ran is made again, not found broken.
    engine: dict[str, Any] = {"pool_pre_ping": True}
    if url.startswith(("postgresql://", "postgresql+psycopg")):
        engine["connect_args"] = {k: v for k, v in _PATIENCE.items() if k not in url}
    for opening in range(1, OPENINGS + 1):
        try:
            return RDBStorage(url, engine_kwargs=engine)
        except RuntimeError as error:
            raise StoreError(
                f"{redacted(url)}: the store was made by another version of Optuna: "
                f"{redacted(error, url)}"
            ) from None
        except Exception as error:
            # SQLAlchemy and its drivers have families of their own.
            may_pass = not url.startswith("sqlite") and _half_made(error)
            if opening == OPENINGS or not may_pass:
                raise StoreError(
                    f"{redacted(url)} cannot be opened: {redacted(error, url)}"
                ) from None
            _wait(opening)
    raise AssertionError("unreachable")


def _wait(opening: int) -> None:
    """Wait longer each time, and not as long as another process that meets the same."""
    of_this_process = 1 + os.getpid() % 7 / 7
    time.sleep(0.05 * 2**opening * of_this_process)


def _half_made(error: Exception) -> bool:
    """Return whether it is what a run meets while another makes the tables of the same database."""
    from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError

    if isinstance(error, OperationalError):
        return "already exists" in str(error) or "deadlock" in str(error)
    return isinstance(error, (AssertionError, IntegrityError, ProgrammingError))


def check_readable(path: Path) -> None:
    """Raise StoreError if a file is no SQLite database."""
    try:
        with contextlib.closing(
            sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        ) as connection:
            connection.execute("SELECT name FROM sqlite_master LIMIT 1").fetchone()
    except sqlite3.DatabaseError as error:
        raise StoreError(f"{path} is no readable history: {error}") from error
