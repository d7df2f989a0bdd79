"""The command line: one module per command, each a thin face over the library.

Exit codes: 0 done (and the goal reached), 1 an error in the run, 2 wrong usage or settings, 3 the
goal was not reached, 130 interrupted (the best so far is saved).
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence

import typer

from octavo.core.errors import ConfigError, OctavoError, UnknownPart

from . import (
    capabilities,
    export,
    history,
    inspect,
    plugins,
    quantize,
    report,
    schema,
    sensitivity,
    tune,
)
from .console import fail, warn

app = typer.Typer(
    name="octavo",
    help="Find the smallest, fastest quantized version of a model that is still good enough, and "
    "prove it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (
    tune,
    quantize,
    inspect,
    capabilities,
    sensitivity,
    export,
    history,
    report,
    plugins,
    schema,
):
    command.register(app)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and end the process with its exit code."""
    warnings.showwarning = lambda message, *_, **__: warn(str(message))
    try:
        given = sys.argv[1:] if arguments is None else list(arguments)
        app(args=given, obj=given, prog_name="octavo")
    except (ConfigError, UnknownPart) as error:
        fail(error)
        sys.exit(2)
    except OctavoError as error:
        fail(error)
        sys.exit(1)
    except KeyboardInterrupt:
        fail("interrupted")
        sys.exit(130)
