"""``octavo quantize``: a named scheme for the whole model, without a search."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from octavo.core.contract.plugins import PluginHost
from octavo.core.errors import ConfigError
from octavo.core.opening.backends import only_backend
from octavo.core.opening.config import TuningConfig
from octavo.core.opening.grammar.methods import method_names
from octavo.core.opening.grammar.named import NamedScheme, is_scheme, scheme_names
from octavo.core.opening.grammar.written import plain
from octavo.core.results.comparing import Comparison
from octavo.core.results.result import Quantized, check_target
from octavo.core.results.saved_recipes import FILES, Scheme, read_scheme
from octavo.core.tuning.quantize import quantize_model

from .console import out, say, show_json
from .face.early import check_parts, existing
from .face.failures import DONE
from .face.logs import logged
from .face.options import (
    GOAL,
    HOW,
    INPUT,
    OUTPUT,
    AsJson,
    Backend,
    BatchSize,
    Evaluate,
    Labels,
    LogFile,
    Model,
    Verbose,
    flag,
    option,
)
from .given.data import Samples, calibration_source, read_samples
from .given.metrics import METRICS, FileScore, metric
from .given.models import check_model, default_folder, source
from .given.scoring import SAMPLES, float_labels, is_path, score_function
from .quantize_job import Made, plan_of_quantize

EXAMPLES = """
octavo quantize model.onnx --scheme int8-dynamic
octavo quantize model.onnx --scheme int8-static --data samples.npz --metric accuracy
octavo quantize model.onnx --scheme int8-static+smoothquant+bias-correction --data samples.npz
octavo quantize model.onnx --scheme model-quantized --data samples.npz
"""

_SCHEME = (
    "format[+method...]: int8-static, int8-dynamic, int4-weight-only+gptq, "
    "int8-static+smoothquant, bfloat16, ... (octavo schemes MODEL lists them); or a saved result, "
    "a recipe (.json), or a configuration whose rules say what each op takes."
)
_DATA = "Samples that calibrate: an .npz, a folder of .npy, or module:name."
_METRIC = f"Score both models on --data: {', '.join(METRICS)}."


def _names(incomplete: str) -> list[str]:
    """Return what a scheme may begin with, or the methods that may follow a '+'."""
    before, plus, last = incomplete.rpartition("+")
    host = PluginHost()
    names = method_names(host) if plus else scheme_names(host)
    return [f"{before}{plus}{name}" for name in names if name.startswith(plain(last))]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("quantize", epilog=EXAMPLES)(quantize)


def quantize(
    model: Model,
    scheme: Annotated[
        str, option(HOW, "NAME", _SCHEME, autocompletion=_names)
    ] = "int8-static",
    data: Annotated[str | None, option(INPUT, "FILE", _DATA)] = None,
    labels: Labels = None,
    batch_size: BatchSize = 32,
    backend: Backend = None,
    metric_name: Annotated[
        str | None, option(GOAL, "NAME", _METRIC, "--metric")
    ] = None,
    evaluate: Evaluate = None,
    dry_run: Annotated[
        bool, flag(HOW, "Open and read everything, quantize nothing.", "--dry-run")
    ] = False,
    output: Annotated[
        Path | None,
        option(OUTPUT, "FOLDER", "Left out: MODEL-SCHEME.", "--output", "-o"),
    ] = None,
    ledger: Annotated[
        bool, flag(OUTPUT, "Show every op; left out: a few lines by type.", "--ledger")
    ] = False,
    as_json: AsJson = False,
    verbose: Verbose = 0,
    log_file: LogFile = None,
) -> None:
    """Quantize MODEL by a named scheme, without a search.

    It ends with float against quantized: size, latency, outputs, and the score that is asked for.
    """
    host = PluginHost()
    chosen = _scheme(scheme, host)
    _check_score(metric_name, evaluate, data)
    _check_data(data, chosen)
    if backend is not None:
        only_backend(backend, host)
    check_model(model, host)
    target = check_target(output or default_folder(model, _last_part(scheme, chosen)))
    with ExitStack() as stack:
        stack.enter_context(logged(verbose, log_file))
        own = score_function(evaluate) if evaluate is not None else None
        samples, batches = _read(data, labels, batch_size, metric_name)
        opened = source(model)
        if dry_run:
            plan = plan_of_quantize(
                model, opened, (scheme, chosen), batches, backend, target
            )
            plan.tell(as_json)
            raise typer.Exit(DONE)
        score: Callable[[Any], Any] | None = own
        if metric_name is not None and samples is not None:
            asked = () if backend is None else (backend,)
            reference = float_labels(
                opened, metric_name, samples, batch_size, host, asked
            )
            score = FileScore(metric_name, samples, batch_size, reference)
        shows = verbose == 0
        quantized = quantize_model(
            opened,
            scheme if isinstance(chosen, NamedScheme) else chosen,
            batches,
            backend=backend,
            progress=shows,
        )
        folder = quantized.save(target)
        compared = None
        if batches is not None:
            compared = _compared(quantized, score, metric_name)
    made = Made(quantized, scheme, folder, compared)
    if as_json:
        show_json(made.facts())
        return
    for note in made.notes:
        say(note)
    console = out()
    for part in made.parts(ledger):
        console.print(part, crop=False)
    console.print(f"result: {folder}", soft_wrap=True)


def _read(
    data: str | None, labels: str | None, batch_size: int, metric_name: str | None
) -> tuple[Samples | None, Any]:
    """Return the samples of a file, where a score needs them, and calibration batches."""
    if data is None:
        return None, None
    if metric_name is None:
        return None, calibration_source(data, "--data", batch_size, labels)
    samples = read_samples(Path(data), labels)
    return samples, list(samples.batches(batch_size))


def _compared(
    quantized: Quantized, score: Callable[[Any], Any] | None, name: str | None
) -> Comparison:
    """Return the quantized model beside float."""
    if isinstance(score, FileScore):
        # A built-in score calls either model with arrays.
        quantized = replace(quantized, native=False)
    return quantized.compare(score=score, metric=name or "score")


def _check_score(name: str | None, evaluate: str | None, data: str | None) -> None:
    """Raise ConfigError where a score is asked for that cannot be taken."""
    if name is None:
        return
    if evaluate is None:
        metric(name)
    if evaluate is None and (data is None or not is_path(data)):
        raise ConfigError("--metric scores the samples of a file: give --data")


def _scheme(scheme: str, host: PluginHost) -> Scheme:
    """Return what ``--scheme`` names.

    Raises:
        ConfigError: If it is neither a scheme nor a saved result, a recipe or a configuration.
        MissingFile: If it looks like a path, and nothing is there.
    """
    path = Path(scheme)
    if not is_scheme(scheme, host) and (path.exists() or path.suffix in FILES):
        existing(scheme, "--scheme", "give a named scheme, a saved result or a recipe")
    found = read_scheme(scheme, host)
    if isinstance(found, TuningConfig):
        check_parts(found)
    return found


def _last_part(scheme: str, chosen: Scheme) -> str:
    """Return the last part of the name of a result's folder: what was asked for, in characters that
    every file system takes."""
    said = str(chosen) if isinstance(chosen, NamedScheme) else Path(scheme).stem
    plain = re.sub(r"[^\w.+-]+", "-", said)
    return plain.replace("-+", "+").strip("-")


def _check_data(data: str | None, scheme: Scheme) -> None:
    """Raise ConfigError where calibration samples are missing."""
    if data is not None:
        if is_path(data):
            existing(data, "--data", f"{SAMPLES}, or module:name")
    elif isinstance(scheme, NamedScheme) and scheme.needs_data:
        raise ConfigError(
            f"scheme {str(scheme)!r} needs calibration samples: give --data, or take a dynamic or "
            "weight-only scheme, with methods that need none"
        )
