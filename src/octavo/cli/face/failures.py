"""How a command fails: which exit code, and the words or the JSON object that say why."""

from __future__ import annotations

from typing import Any, cast

import typer

from octavo.core.errors import ConfigError, OctavoError, UnknownPart

from ..console import err, fail, show_json

DONE = 0
FAILED = 1
WRONG_USAGE = 2
NOT_REACHED = 3
INTERRUPTED = 130

# Typer hands out this one of its usage errors; the family that all belong to is its base.
UsageError = cast(type[Exception], typer.BadParameter.__base__)


class Interrupted(Exception):
    """Ctrl-C outside a run: Typer would end the process without a word."""


class MissingFile(ConfigError):
    """A file or folder that was named on the command line is not there."""


def code_of(error: Exception) -> int:
    """Return the exit code of an error."""
    if isinstance(error, (ConfigError, UnknownPart, UsageError)):
        return WRONG_USAGE
    return INTERRUPTED if isinstance(error, Interrupted) else FAILED


def is_told(error: Exception) -> bool:
    """Return whether an error is told in a line; any other is a fault, and ends in a traceback."""
    return isinstance(error, (OctavoError, UsageError, Interrupted))


def tell_failure(error: Exception, as_json: bool) -> int:
    """Say what went wrong and return the exit code.

    Args:
        error: What was raised.
        as_json: Whether standard output is read by a program: then it gets one object.
    """
    code = code_of(error)
    message = _message(error)
    if as_json:
        kind = type(error).__name__
        told = {"type": kind, "message": message}
        show_json({"error": told, "exit_code": code})
        return code
    fail(message)
    context: Any = getattr(error, "ctx", None)
    if context is not None:
        err().print(f"try: {context.command_path} -h", style="dim")
    return code


def _message(error: Exception) -> str:
    """Return an error's text in one line; a usage error's names the option at fault."""
    formatted = getattr(error, "format_message", None)
    text = formatted() if formatted is not None else str(error)
    if formatted is None:
        return text
    return " ".join(text.replace("Value error, ", "").split())
