"""An old history, set aside so that a run begins anew and nothing is lost."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from octavo.core.errors import ConfigError
from octavo.core.system.redaction import redacted

from .stores import is_url, sqlite_path, writable

RECOVERED = ".recovered"
"""End of the name of the folder beside a history that holds what was learned for its trials."""

BESIDE = (".faults", "-journal", "-wal", "-shm", RECOVERED)
"""What SQLite and octavo write beside a history, by the ends of its names."""


def set_aside(storage: str | Path) -> Path | None:
    """Rename a history file, with what belongs to it.

    Args:
        storage: A file path (SQLite).

    Returns:
        Its new path; None where there was none.

    Raises:
        ConfigError: If it is a database on a server.
        StoreError: If another run uses it.
    """
    text = str(storage)
    if is_url(text) and not text.startswith("sqlite"):
        raise ConfigError(
            f"{redacted(text)} is a database: its history is not set aside by a new run; give "
            "another database, or a file"
        )
    path = Path(sqlite_path(text)).expanduser().absolute()
    if not path.exists():
        return None
    with contextlib.ExitStack() as stack:
        # Holding its lock means that nobody writes it.
        writable(path, stack)
        moved = path.with_name(
            f"{path.stem}-until-{time.strftime('%Y%m%d-%H%M%S')}{path.suffix}"
        )
        path.rename(moved)
        for end in BESIDE:
            beside = path.with_name(f"{path.name}{end}")
            if beside.exists():
                beside.rename(moved.with_name(f"{moved.name}{end}"))
    return moved
