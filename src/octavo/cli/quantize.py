"""``octavo quantize``: a named scheme for the whole model, without a search."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from octavo.core.errors import ConfigError
from octavo.core.opening.config import TuningConfig
from octavo.core.opening.presets import PRESETS
from octavo.core.results.result import check_target
from octavo.core.tuning.quantize import quantize_model

from .console import out, say
from .data import calibration_source
from .ledger import ledger_table
from .models import default_folder, source
from .summary import float_weights


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("quantize")(quantize)


def quantize(
    model: Annotated[
        str, typer.Argument(help="A model file (.onnx, .npz), or module:name.")
    ],
    scheme: Annotated[
        str,
        typer.Option(
            help=f"One of {', '.join(PRESETS)}; or a saved result, a recipe (.json), or a "
            "configuration whose rules say what each op takes."
        ),
    ] = "int8-static",
    data: Annotated[
        str | None,
        typer.Option(
            help="Calibration samples: an .npz, a folder of .npy, or module:name."
        ),
    ] = None,
    labels: Annotated[
        str | None, typer.Option(help="Name of an array in --data that is no input.")
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option("--backend", "-b", help="Backend; default: the model's own."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Folder for the result; default: MODEL-SCHEME."
        ),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Samples per calibration batch.")
    ] = 32,
) -> None:
    """Quantize MODEL by a named scheme and print what became of each op."""
    opened = source(model)
    chosen: Any = scheme
    if scheme not in PRESETS and Path(scheme).suffix in (".toml", ".yaml", ".yml"):
        chosen = TuningConfig.read(Path(scheme))
    target = check_target(output or default_folder(model, opened, Path(scheme).stem))
    batches = (
        calibration_source(data, "--data", batch_size, labels)
        if data is not None
        else None
    )
    if batches is None and isinstance(chosen, str) and "static" in chosen:
        raise ConfigError(
            f"scheme {scheme!r} needs calibration samples: give --data, or take a dynamic or "
            "weight-only scheme"
        )
    quantized = quantize_model(opened, chosen, batches, backend=backend)
    for note in quantized.notes:
        if note != quantized.coverage.summary():  # the table tells it
            say(note)
    console = out()
    console.print(ledger_table(quantized.ledger))
    if quantized.coverage.total:
        console.print(float_weights(quantized.coverage))
    console.print(f"model: {quantized.save(target)}", soft_wrap=True)
