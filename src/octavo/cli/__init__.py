"""The command line: one module per command, each a thin face over the library.

Exit codes: 0 done (and the goal reached), 1 an error in the run, 2 wrong usage or settings, 3 the
goal was not reached, 130 interrupted (the best so far is saved).
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from octavo import __version__

from . import (
    capabilities,
    check,
    compare,
    export,
    history,
    inspect,
    plugins,
    quantize,
    report,
    schema,
    schemes,
    sensitivity,
    tune,
)
from .console import Remarks, warn
from .face.failures import is_told, tell_failure
from .face.help import Command, Commands
from .streams import prepare_streams

app = typer.Typer(
    name="octavo",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""
    octavo tune model.onnx --data samples.npz --metric accuracy
    octavo tune my_module:model --data samples.npz --evaluate my_module:score
    octavo quantize model.onnx --scheme int8-dynamic
    octavo COMMAND -h
    """,
)
for command in (
    tune,
    quantize,
    check,
    compare,
    report,
    export,
    history,
    inspect,
    capabilities,
    schemes,
    sensitivity,
    plugins,
    schema,
):
    command.register(app)
for registered in app.registered_commands:
    registered.cls = Command


def _version(is_asked: bool) -> None:
    if is_asked:
        sys.stdout.write(f"octavo {__version__}\n")
        raise typer.Exit


@app.callback()
def octavo(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_version,
            is_eager=True,
            help="Print the version and end.",
        ),
    ] = False,
) -> None:
    """Find the smallest, fastest quantized version of a model that is still good enough, and
    prove it."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and end the process with its exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    prepare_streams()
    warnings.showwarning = lambda message, *_, **__: warn(str(message))
    sys.unraisablehook = _quiet_when_interrupted(sys.unraisablehook)
    logger, remarks = logging.getLogger("octavo"), Remarks(logging.WARNING)
    logger.addHandler(remarks)
    try:
        code = _run(given)
    finally:
        logger.removeHandler(remarks)
    sys.exit(code)


def _run(given: list[str]) -> int:
    """Run one command and return its exit code."""
    try:
        ended = app(
            args=given or ["--help"],
            obj=given,
            prog_name="octavo",
            standalone_mode=False,
        )
    except Exception as error:
        if not is_told(error):
            raise
        return tell_failure(error, as_json="--json" in given)
    return ended if isinstance(ended, int) else 0


def _quiet_when_interrupted(shown: Any) -> Any:
    """Return a hook that shows what was raised where nothing can catch it, but for a second Ctrl-C
    while the process ends: it would show the inside of some library among the last lines."""

    def hook(unraisable: Any) -> None:
        if not isinstance(unraisable.exc_value, KeyboardInterrupt):
            shown(unraisable)

    return hook
