"""``octavo quantize``: a named scheme for the whole model, without a search."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from octavo.core.contract.plugins import PluginHost
from octavo.core.errors import ConfigError, nearest
from octavo.core.opening.config import TuningConfig
from octavo.core.opening.presets import PRESETS
from octavo.core.report.ledger_tables import ledger_table
from octavo.core.report.summary import float_weights
from octavo.core.results.result import check_target
from octavo.core.tuning.quantize import quantize_model

from .console import out, say
from .face.early import check_parts, existing
from .face.logs import logged
from .face.options import (
    HOW,
    INPUT,
    OUTPUT,
    Backend,
    BatchSize,
    Labels,
    LogFile,
    Model,
    Verbose,
    option,
)
from .given.data import calibration_source
from .given.models import check_model, default_folder, source
from .given.scoring import SAMPLES, is_path

EXAMPLES = """
octavo quantize model.onnx --scheme int8-dynamic
octavo quantize model.onnx --scheme int8-static --data samples.npz
octavo quantize model.onnx --scheme model-quantized --data samples.npz
"""

_SCHEME = (
    f"{', '.join(PRESETS)}; or a saved result, a recipe (.json), or a configuration whose rules "
    "say what each op takes."
)
_DATA = "Samples that calibrate: an .npz, a folder of .npy, or module:name."
CONFIGURATIONS = (".toml", ".yaml", ".yml")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("quantize", epilog=EXAMPLES)(quantize)


def quantize(
    model: Model,
    scheme: Annotated[str, option(HOW, "NAME", _SCHEME)] = "int8-static",
    data: Annotated[str | None, option(INPUT, "FILE", _DATA)] = None,
    labels: Labels = None,
    batch_size: BatchSize = 32,
    backend: Backend = None,
    output: Annotated[
        Path | None,
        option(OUTPUT, "FOLDER", "Left out: MODEL-SCHEME.", "--output", "-o"),
    ] = None,
    verbose: Verbose = 0,
    log_file: LogFile = None,
) -> None:
    """Quantize MODEL by a named scheme, without a search."""
    chosen = _scheme(scheme)
    _check_data(data, chosen)
    host = PluginHost()
    if backend is not None:
        host.read("adapters", backend)
    check_model(model, host)
    target = check_target(output or default_folder(model, Path(scheme).stem))
    with ExitStack() as stack:
        stack.enter_context(logged(verbose, log_file))
        batches = None
        if data is not None:
            batches = calibration_source(data, "--data", batch_size, labels)
        quantized = quantize_model(
            source(model), chosen, batches, backend=backend, progress=True
        )
    for note in quantized.notes:
        if note != quantized.coverage.summary():  # the table tells it
            say(note)
    console = out()
    console.print(ledger_table(quantized.ledger))
    if quantized.coverage.total:
        console.print(float_weights(quantized.coverage))
    console.print(f"model: {quantized.save(target)}", soft_wrap=True)


def _scheme(scheme: str) -> str | TuningConfig:
    """Return what ``--scheme`` names: a name, the path of a result or recipe, or a configuration.

    Raises:
        ConfigError: If it is none of these.
    """
    if scheme in PRESETS:
        return scheme
    path = Path(scheme)
    looks_like_a_path = path.exists() or bool(path.suffix) or len(path.parts) > 1
    if not looks_like_a_path:
        raise ConfigError(f"no scheme called {scheme!r}{nearest(scheme, PRESETS)}")
    existing(scheme, "--scheme", "give a named scheme, a saved result or a recipe")
    if path.suffix not in CONFIGURATIONS:
        return scheme
    settings = TuningConfig.read(path)
    check_parts(settings)
    return settings


def _check_data(data: str | None, scheme: Any) -> None:
    """Raise ConfigError where calibration samples are missing."""
    if data is not None:
        if is_path(data):
            existing(data, "--data", f"{SAMPLES}, or module:name")
    elif scheme in PRESETS and "static" in scheme:
        raise ConfigError(
            f"scheme {scheme!r} needs calibration samples: give --data, or take a dynamic or "
            "weight-only scheme"
        )
