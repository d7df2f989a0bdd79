"""``octavo export``: a saved result in a form that runs elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from octavo.core.contract.plugins import PluginHost
from octavo.core.errors import ConfigError
from octavo.core.opening.backends import only_backend
from octavo.core.opening.opening import open_model
from octavo.core.report import text
from octavo.core.results.result import Quantized, load_candidate

from .console import out, show_json
from .face.options import (
    INPUT,
    OUTPUT,
    AsJson,
    FloatModel,
    argument,
    flag,
    option,
)
from .given.models import check_model, is_result, source

EXAMPLES = """
octavo export model-quantized --standalone -o runner
octavo export model-quantized --to compressed-tensors -o checkpoint --float my_module:model
"""

_STANDALONE = "Short for --to standalone: model and runner, NumPy only."


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("export", epilog=EXAMPLES)(export)


def export(
    result: Annotated[
        str, argument("RESULT", "Folder of a saved result; or a float model.")
    ],
    output: Annotated[
        Path,
        option(
            OUTPUT,
            "FOLDER",
            "Where to write; it must be new or empty.",
            "--output",
            "-o",
        ),
    ],
    to: Annotated[
        str | None, option(OUTPUT, "NAME", "Exporter; see octavo plugins.")
    ] = None,
    standalone: Annotated[bool, flag(OUTPUT, _STANDALONE, "--standalone")] = False,
    backend: Annotated[
        str | None,
        option(INPUT, "NAME", "Open a float model with this.", "--backend", "-b"),
    ] = None,
    float_model: FloatModel = None,
    as_json: AsJson = False,
) -> None:
    """Write RESULT for another runtime."""
    host = PluginHost()
    if standalone == (to is not None):
        exporters = ", ".join(sorted(host.parts("exporters")))
        raise ConfigError(
            f"say which exporter: --standalone, or --to with one of {exporters}"
        )
    exporter = host.part("exporters", to or "standalone").name
    if backend is not None:
        only_backend(backend, host)
    check_model(result, host, or_result=True)
    _check_empty(output)
    opened = source(result)
    if is_result(opened):
        in_float = source(float_model) if float_model else None
        candidate = load_candidate(opened, in_float, host=host)
    else:
        candidate = open_model(opened, host, backend=backend).session.reference()
    folder = Quantized(candidate).export(exporter, output, host=host)
    files = sorted(f for f in folder.rglob("*") if f.is_file())
    if as_json:
        show_json(_as_json(exporter, folder, files))
    else:
        _print_files(files)


def _check_empty(folder: Path) -> None:
    """Raise ConfigError where an export would overwrite something."""
    is_free = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if not is_free:
        raise ConfigError(f"{folder} exists and is not empty; choose another folder")


def _as_json(exporter: str, folder: Path, files: list[Path]) -> dict[str, Any]:
    sizes = {str(file): file.stat().st_size for file in files}
    return {
        "to": exporter,
        "folder": str(folder),
        "bytes": sum(sizes.values()),
        "files": [{"path": path, "bytes": size} for path, size in sizes.items()],
        "exit_code": 0,
    }


def _print_files(files: list[Path]) -> None:
    """Print each file with its size."""
    console = out()
    for file in files:
        console.print(f"{file}  {text.size(file.stat().st_size)}", soft_wrap=True)
