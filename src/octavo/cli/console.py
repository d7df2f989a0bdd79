"""Where the command line writes: results to standard output, everything else to standard error."""

from __future__ import annotations

import json
import logging
import os
import sys
from typing import Any, TextIO

from rich.console import Console
from rich.text import Text

from octavo.core.report.tables import WIDE
from octavo.core.system.log import SHOWN
from octavo.core.values.json_form import without_infinities

from .streams import is_unicode

HELP = 80
"""Columns of help in a pipe: a pager shows it."""


def out() -> Console:
    """Return a console on standard output. Made anew, so that a redirected ``sys.stdout`` is
    honoured."""
    return _console(sys.stdout, WIDE)


def help_page() -> Console:
    """Return a console on standard output for texts, which are no better for being wide."""
    console = _console(sys.stdout, HELP)
    console.width = min(console.width, 100)
    return console


def err() -> Console:
    """Return a console on standard error."""
    return Console(
        file=sys.stderr, highlight=False, markup=False, emoji=False, soft_wrap=True
    )


def _console(stream: TextIO, in_a_pipe: int) -> Console:
    """Return a console as wide as its terminal, or as COLUMNS says; in a pipe as wide as told."""
    width = None if stream.isatty() or "COLUMNS" in os.environ else in_a_pipe
    return Console(file=stream, highlight=False, markup=False, emoji=False, width=width)


def fail(message: object) -> None:
    """Print an error."""
    err().print(Text("error: ", style="bold red") + Text(str(message)))


def warn(message: object) -> None:
    """Print a warning."""
    err().print(Text("warning: ", style="yellow") + Text(str(message)))


class Remarks(logging.Handler):
    """Prints remarks of octavo's loggers that no listener of a run has shown."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record as a warning."""
        if not getattr(record, SHOWN, False):
            warn(record.getMessage())


def say(message: str) -> None:
    """Print a line about what the command does."""
    err().print(Text(message))


def show_json(value: Any) -> None:
    """Print JSON that another program can read, in any encoding."""
    text = json.dumps(
        without_infinities(value),
        indent=2,
        ensure_ascii=not is_unicode(sys.stdout),
        allow_nan=False,
    )
    sys.stdout.write(f"{text}\n")
