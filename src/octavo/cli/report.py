"""``octavo report``: the HTML report of a saved result."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from octavo.core.report import report_data, write
from octavo.core.results.result import read_manifest

from .console import out
from .summary import summary


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("report")(report)


def report(
    result: Annotated[Path, typer.Argument(help="Folder of a saved result.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Where to write the page; default: report.html in the folder.",
        ),
    ] = None,
    title: Annotated[
        str, typer.Option(help="Heading of the page.")
    ] = "Quantization report",
) -> None:
    """Write the HTML report of a saved result, and print its summary."""
    data = report_data(read_manifest(result), title)
    path = write(data, output or result / "report.html")
    console = out()
    console.print(summary(data))
    console.print(f"report: {path}", soft_wrap=True)
