"""Small files: read with typed errors, written whole or not at all."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from .errors import ConfigError


def read_text(path: Path) -> str:
    """Read UTF-8 text.

    Raises:
        ConfigError: If the file is missing, a folder, or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


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
