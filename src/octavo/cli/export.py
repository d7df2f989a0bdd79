"""``octavo export``: a saved result in a form that runs elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from octavo.core.contract.plugins import PluginHost
from octavo.core.errors import ConfigError
from octavo.core.opening.opening import open_model
from octavo.core.report import text
from octavo.core.results.result import Quantized, load_candidate

from .console import out
from .models import is_result, source


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("export")(export)


def export(
    result: Annotated[
        str, typer.Argument(help="Folder of a saved result; or a float model.")
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="Folder to write; it must be new or empty."
        ),
    ],
    to: Annotated[
        str | None, typer.Option(help="Exporter; see octavo plugins.")
    ] = None,
    standalone: Annotated[
        bool,
        typer.Option(
            "--standalone",
            help="Short for --to standalone: model and runner, NumPy only.",
        ),
    ] = False,
    backend: Annotated[
        str | None,
        typer.Option("--backend", "-b", help="Open a float model with this backend."),
    ] = None,
    float_model: Annotated[
        str | None,
        typer.Option(
            "--float",
            help="The float model (module:name), where a saved result does not hold it.",
        ),
    ] = None,
) -> None:
    """Write RESULT for another runtime."""
    host = PluginHost()
    if standalone == (to is not None):
        exporters = ", ".join(sorted(host.parts("exporters")))
        raise ConfigError(
            f"say which exporter: --standalone, or --to with one of {exporters}"
        )
    opened = source(result)
    if is_result(opened):
        in_float = source(float_model) if float_model else None
        candidate = load_candidate(opened, in_float, host=host)
    else:
        candidate = open_model(opened, host, backend=backend).session.reference()
    Quantized(candidate).export(to or "standalone", output, host=host)
    _list_files(output)


def _list_files(folder: Path) -> None:
    """Print each file of a folder with its size."""
    console = out()
    for file in sorted(f for f in folder.rglob("*") if f.is_file()):
        console.print(f"{file}  {text.size(file.stat().st_size)}", soft_wrap=True)
