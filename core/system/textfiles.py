"""Small files: read with typed errors, written whole or not at all."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import Any

from octavo.core.errors import ConfigError, OctavoError, raised_as, shown


def absolute(path: Any, what: str) -> Path:
    """Return a path that a caller gave, with ``~`` resolved.

    Args:
        path: A text or path.
        what: What it is for, for the message.

    Raises:
        ConfigError: If it is no path, or names a home that is not there.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise ConfigError(f"{what} is given by its path; got a {type(path).__name__}")
    with raised_as(ConfigError, f"{what} cannot lie at {shown(path)}"):
        found = Path(path).expanduser().absolute()
        if "\0" in str(found):
            raise ValueError("a name of a file holds no null character")
        found.exists()  # raises where a name is too long
        return found


def read_text(path: Path) -> str:
    """Read UTF-8 text.

    Raises:
        ConfigError: If the file is missing, a folder, or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    # ValueError: of texts that are no UTF-8, and of names that no file can have.
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def read_table(
    path: Path, family: type[OctavoError] = ConfigError, remedy: str = ""
) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Args:
        path: The file.
        family: Which error says that it is none.
        remedy: What to do then.

    Raises:
        OctavoError: Of that family, if the file is missing, damaged, nested too deeply or holds
            something else.
    """
    with raised_as(family, f"{path} is damaged", remedy):
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise TypeError(f"it holds a {type(found).__name__}, not a table")
        return found


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text so that readers see the old file or the whole new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not mkstemp, whose files only their owner may read: a report is made to be shown.
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
    try:
        with temporary.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
