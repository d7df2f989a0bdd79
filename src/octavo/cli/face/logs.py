"""Where the logger ``octavo`` writes while a command runs."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from octavo.core.errors import ConfigError
from octavo.core.system.log import SHOWN
from octavo.core.system.textfiles import absolute

from ..console import Remarks

LOGGER = "octavo"
IN_FILE = "%(asctime)s %(levelname)s %(name)s: %(message)s"
ON_SCREEN = "%(levelname)s %(name)s: %(message)s"


@contextmanager
def logged(verbosity: int, file: Path | None) -> Iterator[None]:
    """Log to standard error and to a file, as far as that is asked for.

    Args:
        verbosity: 0 logs nothing to standard error, 1 what is done, 2 every detail.
        file: Takes everything, after what it holds already; None for none.

    Raises:
        ConfigError: If the file cannot be written.
    """
    handlers: list[logging.Handler] = []
    if verbosity:
        screen = logging.StreamHandler(sys.stderr)
        screen.setLevel(logging.INFO if verbosity == 1 else logging.DEBUG)
        screen.setFormatter(logging.Formatter(ON_SCREEN))
        screen.addFilter(_is_unseen)
        handlers.append(screen)
    if file is not None:
        handlers.append(_file_handler(file))
    logger = logging.getLogger(LOGGER)
    before = logger.level
    # What else prints remarks would print those of the log once more.
    doubled = [h for h in logger.handlers if verbosity and isinstance(h, Remarks)]
    for remarks in doubled:
        logger.removeHandler(remarks)
    if handlers:
        logger.setLevel(min(handler.level or logging.DEBUG for handler in handlers))
    for handler in handlers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        logger.setLevel(before)
        for handler in handlers:
            logger.removeHandler(handler)
            handler.close()
        for remarks in doubled:
            logger.addHandler(remarks)


def _is_unseen(record: logging.LogRecord) -> bool:
    """Return False for remarks, which the command shows whether or not it logs."""
    if not hasattr(record, SHOWN):
        return True
    return record.levelno < logging.WARNING and not getattr(record, SHOWN)


def _file_handler(file: Path) -> logging.Handler:
    path = absolute(file, "a log")
    try:
        handler = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"--log-file {path} cannot be written: {error.strerror}"
        ) from error
    handler.setLevel(logging.DEBUG)
    handler.setFormatter(logging.Formatter(IN_FILE))
    return handler
