"""``octavo report``: the HTML report of a saved result."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from octavo.core.report import report_data, write
from octavo.core.report.outcome import outcome
from octavo.core.report.summary import summary
from octavo.core.results.result import read_manifest

from .console import out, show_json
from .face.early import existing
from .face.options import OUTPUT, AsJson, ResultFolder, option

EXAMPLES = """
octavo report model-quantized
octavo report model-quantized -o page.html --title "The detector, in 8 bits"
octavo report model-quantized --json
"""

_OUTPUT = "Where to write the page; left out: report.html in the folder."


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("report", epilog=EXAMPLES)(report)


def report(
    result: ResultFolder,
    output: Annotated[
        Path | None, option(OUTPUT, "FILE", _OUTPUT, "--output", "-o")
    ] = None,
    title: Annotated[
        str, option(OUTPUT, "TEXT", "Heading of the page.")
    ] = "Quantization report",
    as_json: AsJson = False,
) -> None:
    """Write the HTML report of a saved result, and print its summary."""
    folder = existing(result, "the result", "give a folder that octavo tune wrote")
    data = report_data(read_manifest(folder), title)
    path = write(data, output or folder / "report.html", folder)
    if as_json:
        show_json({**outcome(data, folder), "report": str(path), "exit_code": 0})
        return
    console = out()
    console.print(summary(data, folder), crop=False)
    console.print(f"report: {path}", soft_wrap=True)
