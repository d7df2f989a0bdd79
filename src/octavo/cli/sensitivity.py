"""``octavo sensitivity``: how much the model suffers when one unit takes one scheme."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.text import Text

from octavo.core.errors import ModelError
from octavo.core.opening.config import TuningConfig
from octavo.core.opening.opening import open_all, plugin_host
from octavo.core.opening.spaces import build_space
from octavo.core.quantizing.realize import Realizer
from octavo.core.report.tables import TextTable, table
from octavo.core.sensitivity.service import SensitivityService
from octavo.core.system.textfiles import write_text
from octavo.core.values.scheme import OpScheme
from octavo.core.values.space import Unit

from .console import out, say, show_json
from .given.data import read_samples
from .given.models import source

BAR = 20  # characters of the longest bar


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("sensitivity")(sensitivity)


def sensitivity(
    model: Annotated[
        str, typer.Argument(help="A model file (.onnx, .npz), or module:name.")
    ],
    data: Annotated[
        Path, typer.Option(help="Calibration samples: an .npz or a folder of .npy.")
    ],
    kind: Annotated[
        Literal[
            "output_distance", "weight_error", "hessian", "gradient", "hessian_trace"
        ],
        typer.Option(
            help="Distance of the model's outputs (a run each), estimates from weights and "
            "inputs, or (torch) from gradients."
        ),
    ] = "output_distance",
    labels: Annotated[
        str | None, typer.Option(help="Name of an array in --data that is no input.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", "-c", help="Configuration whose rules restrict the schemes."
        ),
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option("--backend", "-b", help="Backend; default: the model's own."),
    ] = None,
    every: Annotated[
        bool,
        typer.Option(
            "--all", help="Every scheme of every unit; default: the first of each mode."
        ),
    ] = False,
    batches: Annotated[
        int, typer.Option(min=1, help="Batches of --data that are used.")
    ] = 2,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples per batch.")] = 32,
    save: Annotated[
        Path | None,
        typer.Option(
            help="Keep the scores in this file, and start from it if it is there."
        ),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the scores into this .svg.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Rank the units of MODEL by what quantizing each one alone costs: 0 is no change, the most
    sensitive first."""
    settings = TuningConfig.read(
        config, **({"backends": (backend,)} if backend else {})
    )
    host = plugin_host(settings)
    with ExitStack() as stack:
        opened, given, _ = open_all(
            source(model),
            list(islice(read_samples(data, labels).batches(batch_size), batches)),
            settings,
            host,
            stack,
        )
        target = opened[-1]
        space = build_space(target, settings.rules, simulated=settings.simulated)
        if not space.tunable:
            raise ModelError(
                f"{model} has nothing to quantize on {target.name}; see octavo capabilities {model}"
            )
        realizer = Realizer(
            target,
            space,
            host,
            non_finite=settings.non_finite,
            gram_bytes=settings.gram_bytes,
        )
        realizer.calibrate(given[target.name])
        service = SensitivityService(target, realizer, tuple(given[target.name]), save)
        found = {
            unit.name: _scores(service, kind, unit, every) for unit in space.tunable
        }
        if save is not None:
            service.save(save)
    ranked = sorted(space.tunable, key=lambda unit: -max(found[unit.name].values()))
    loss = kind.replace("_", " ")
    if as_json:
        show_json(_as_json(ranked, found))
    else:
        out().print(_ranking(ranked, found, loss))
    if plot is not None:
        _draw(plot, ranked, found, loss)


Losses = Mapping[str, Mapping[OpScheme, float]]
"""Unit -> scheme -> loss."""


def _as_json(ranked: Sequence[Unit], found: Losses) -> dict[str, dict[str, float]]:
    told = {}
    for unit in ranked:
        losses = found[unit.name]
        told[unit.name] = {str(scheme): loss for scheme, loss in losses.items()}
    return told


def _ranking(ranked: Sequence[Unit], found: Losses, loss: str) -> TextTable:
    bar = _bars([value for losses in found.values() for value in losses.values()])
    rows: list[tuple[object, ...]] = []
    for unit in ranked:
        weights = f"{unit.parameters:,}" if unit.parameters else ""
        worst_first = sorted(found[unit.name].items(), key=lambda pair: -pair[1])
        for scheme, value in worst_first:
            rows.append(
                (unit.name, unit.type, weights, scheme, _shown(value), bar(value))
            )
    columns = ("unit", "type", "weights", "scheme", loss, "log scale")
    return table(columns, rows, right=("weights", loss))


def _draw(path: Path, ranked: Sequence[Unit], found: Losses, loss: str) -> None:
    from octavo.core.report.charts import sensitivities

    rows = [(u.name, str(s), v) for u in ranked for s, v in found[u.name].items()]
    write_text(path, sensitivities(rows, loss))
    say(f"plot: {path}")


def _scores(
    service: SensitivityService, kind: str, unit: Unit, every: bool
) -> dict[OpScheme, float]:
    modes: dict[str, OpScheme] = {}
    for scheme in unit.choices:
        if not scheme.is_float:
            modes.setdefault(scheme.mode, scheme)
    quantized = [s for s in unit.choices if not s.is_float]
    wanted = quantized if every else list(modes.values())
    losses = service(kind, [(unit.name, s) for s in wanted])
    return dict(zip(wanted, losses, strict=True))


def _bars(losses: Sequence[float]) -> Callable[[float], str]:
    """Return a function that draws a loss as a bar whose length grows with its logarithm, over the
    losses that were found."""
    logs = [math.log(v) for v in losses if 0 < v < math.inf]
    low = min(logs, default=0.0)
    high = max(logs, default=0.0)

    def bar(value: float) -> str:
        if not 0 < value < math.inf:
            return ""
        if high == low:
            return "█"
        share = (math.log(value) - low) / (high - low)
        return "█" * (1 + round((BAR - 1) * share))

    return bar


def _shown(value: float) -> Text:
    if value == float("inf"):
        return Text("cannot be carried out", "yellow")
    return Text(f"{value:.3g}")
