"""``octavo schemes``: what each scheme by name would do to a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from octavo.core.contract.plugins import PluginHost
from octavo.core.errors import ConfigError, OctavoError
from octavo.core.opening.backends import only_backend
from octavo.core.opening.grammar import aliases
from octavo.core.opening.grammar.methods import Method, all_methods
from octavo.core.opening.opening import open_model
from octavo.core.opening.survey import FormatLine, survey
from octavo.core.report.tables import TextTable, table
from octavo.core.results.comparing import Comparison
from octavo.core.tuning.quantize import quantize_model

from .console import out, say, show_json
from .face.early import existing
from .face.options import (
    HOW,
    AsJson,
    Backend,
    BatchSize,
    Data,
    Labels,
    Model,
    flag,
)
from .given.data import read_samples
from .given.models import check_model, source
from .given.scoring import SAMPLES

EXAMPLES = """
octavo schemes model.onnx
octavo schemes model.onnx --time --data samples.npz
"""

_TIME = (
    "Quantize by each format that runs on kernels and time it beside float, on --data."
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("schemes", epilog=EXAMPLES)(schemes)


def schemes(
    model: Model,
    data: Data = None,
    labels: Labels = None,
    batch_size: BatchSize = 32,
    backend: Backend = None,
    time: Annotated[bool, flag(HOW, _TIME, "--time")] = False,
    as_json: AsJson = False,
) -> None:
    """List the schemes that MODEL can take by name: formats, and the methods that go with them.

    A scheme is format[+method...], as int8-static+smoothquant.
    """
    host = PluginHost()
    if backend is not None:
        only_backend(backend, host)
    if time and data is None:
        raise ConfigError("--time runs the model on samples: give --data")
    if data is not None:
        existing(data, "--data", SAMPLES)
    check_model(model, host)
    given = source(model)
    opened = open_model(given, host, backend=backend)
    lines = survey(opened, host)
    timed: dict[str, Comparison] = {}
    if time and data is not None:
        batches = list(read_samples(data, labels).batches(batch_size))
        timed = _timed(given, lines, batches, backend)
    if as_json:
        show_json(_as_json(model, opened.name, lines, timed, host))
        return
    console = out()
    title = f"Formats for {Path(model).name} on {opened.name}"
    console.print(_formats(lines, timed, title))
    if any(line.left for line in lines):
        console.print(_left(lines))
    console.print(_methods(all_methods(host), host))
    console.print(
        "A scheme is format[+method...], as int8-static+smoothquant(alpha=0.75)+gptq; widths may "
        "be written too: w4a8-dynamic, w4a16.",
        soft_wrap=True,
    )


def _timed(
    model: Any, lines: Sequence[FormatLine], batches: Sequence[Any], backend: str | None
) -> dict[str, Comparison]:
    """Return format -> the model quantized by it beside float; what fails is told and left out."""
    found = {}
    for line in lines:
        if not line.kernels:
            continue
        try:
            quantized = quantize_model(
                model, line.name, batches, backend=backend, progress=False
            )
            found[line.name] = quantized.compare()
        except OctavoError as error:
            say(f"{line.name} could not be timed: {error}")
    return found


def _formats(
    lines: Sequence[FormatLine], timed: Mapping[str, Comparison], title: str
) -> TextTable:
    columns = ["format", "also", "ops", "carried out by", "weights"]
    measured = ["file", "speed"] if timed else []
    rows = []
    for line in lines:
        row = [line.name, ", ".join(line.aliases), _ops(line), _by(line), _share(line)]
        if measured:
            row += _measured(timed.get(line.name))
        rows.append(tuple(row))
    right = ("ops", "weights", *measured)
    return table((*columns, *measured), rows, title=title, right=right, least=("also",))


def _ops(line: FormatLine) -> str:
    return f"{line.kernels + line.simulated} of {line.ops}"


def _by(line: FormatLine) -> Text:
    if line.name == "float":
        return Text("float")
    if not line.kernels and not line.simulated:
        return Text("refused", "yellow")
    if not line.simulated:
        return Text("kernel", "green")
    if not line.kernels:
        return Text("simulated", "yellow")
    return Text(f"kernel, {line.simulated} simulated", "yellow")


def _share(line: FormatLine) -> str:
    is_carried_out = line.kernels or line.simulated or line.name == "float"
    if line.share is None or not is_carried_out:
        return "-"
    return f"{line.share:.3f}"


def _measured(found: Comparison | None) -> list[str]:
    """Return the size of the file as a share of float's, and the speed in times of float's."""
    if found is None:
        return ["-", "-"]
    size, speed = _size_of(found), _speed_of(found)
    return [
        "-" if size is None else f"{size:.3f}",
        "-" if speed is None else f"{speed:.2f}x",
    ]


def _size_of(found: Comparison) -> float | None:
    return found.size.ratio


def _speed_of(found: Comparison) -> float | None:
    ratio = found.latency.ratio if found.latency is not None else None
    return 1 / ratio if ratio else None


def _left(lines: Sequence[FormatLine]) -> TextTable:
    """Return which ops cannot take a format, and why; formats that agree share their lines."""
    formats: dict[tuple[str, int], list[str]] = {}
    for line in lines:
        for why, count in line.left.items():
            formats.setdefault((why, count), []).append(line.name)
    rows = [(why, count, ", ".join(names)) for (why, count), names in formats.items()]
    columns = ("why", "ops", "formats")
    return table(columns, rows, title="Ops that cannot take a format", right=("ops",))


def _methods(methods: Sequence[Method], host: PluginHost) -> TextTable:
    rows: list[tuple[str, str, str, str, str]] = []
    for method in methods:
        data = "yes" if method.needs_data(host) else ""
        what = (method.name, method.family, data, method.format, method.summary)
        rows.append(what)
    correction = aliases.BIAS_CORRECTION
    rows.append((correction, "algorithm", "yes", "", aliases.BIAS_CORRECTION_SUMMARY))
    for name, alias in aliases.METHODS.items():
        rows.append((name, "alias", "", "", f"{alias.stands_for}: {alias.summary}"))
    columns = ("method", "kind", "needs data", "alone means", "what it does")
    least = ("needs data", "alone means")
    return table(columns, rows, title="Methods", least=least)


def _as_json(
    model: str,
    backend: str,
    lines: Sequence[FormatLine],
    timed: Mapping[str, Comparison],
    host: PluginHost,
) -> dict[str, Any]:
    formats = []
    for line in lines:
        found = timed.get(line.name)
        measured = {
            "size_ratio": None if found is None else _size_of(found),
            "speed": None if found is None else _speed_of(found),
        }
        formats.append({**asdict(line), **measured})
    return {
        "model": model,
        "backend": backend,
        "formats": formats,
        "methods": [_method_json(method, host) for method in all_methods(host)],
        "aliases": {
            name: alias.stands_for
            for name, alias in {**aliases.FORMATS, **aliases.METHODS}.items()
        },
    }


def _method_json(method: Method, host: PluginHost) -> dict[str, Any]:
    return {
        "name": method.name,
        "kind": method.family,
        "summary": method.summary,
        "needs_data": method.needs_data(host),
        "modes": sorted(method.modes),
        "format": method.format or None,
        "brings": method.brings or None,
    }
