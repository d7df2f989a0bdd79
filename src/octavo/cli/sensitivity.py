"""``octavo sensitivity``: how much the model suffers when one unit takes one scheme."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Group
from rich.text import Text

from octavo.core.errors import ConfigError, ModelError
from octavo.core.opening.config import TuningConfig
from octavo.core.opening.opening import open_all
from octavo.core.opening.spaces import build_space
from octavo.core.quantizing.realize import Realizer
from octavo.core.report.names import distinct, legend
from octavo.core.report.tables import table
from octavo.core.sensitivity.service import SensitivityService
from octavo.core.system.textfiles import write_text
from octavo.core.tuning.telling.display import ProgressDisplay
from octavo.core.tuning.telling.phases import Phases
from octavo.core.values.scheme import OpScheme
from octavo.core.values.space import Unit

from .console import out, say, show_json
from .face.early import check_parts, existing
from .face.logs import logged
from .face.options import (
    HOW,
    INPUT,
    OUTPUT,
    AsJson,
    Backend,
    BatchSize,
    Config,
    Data,
    Labels,
    LogFile,
    Model,
    Verbose,
    flag,
    option,
)
from .given.data import read_samples
from .given.models import check_model, source
from .given.scoring import SAMPLES
from .streams import is_unicode

BAR = 20
"""Characters of the longest bar; half of it where the place is narrow."""

NARROW = 100
"""Columns below which a bar would take the place of words."""

FULL, ASCII = "\N{FULL BLOCK}", "#"
"""What a bar is made of, and where an encoding has no such character."""

Kind = Literal[
    "auto", "output_distance", "weight_error", "hessian", "gradient", "hessian_trace"
]

EXAMPLES = """
octavo sensitivity model.onnx --data samples.npz
octavo sensitivity model.onnx --data samples.npz --plot sensitivity.svg
"""

_KIND = (
    "auto: the best one here; output_distance: of the model's outputs, a run each; "
    "weight_error, hessian: estimates from weights and inputs; gradient, hessian_trace: "
    "from gradients (torch)."
)
_ALL = "Every scheme of every op; left out: the first of each mode."
_SAVE = "Keep the scores in this file, and start from it if it is there."


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("sensitivity", epilog=EXAMPLES)(sensitivity)


def sensitivity(
    model: Model,
    data: Data = None,
    labels: Labels = None,
    batches: Annotated[
        int, option(INPUT, "N", "Batches of --data that are used.", min=1)
    ] = 2,
    batch_size: BatchSize = 32,
    config: Config = None,
    backend: Backend = None,
    kind: Annotated[Kind, option(HOW, "KIND", _KIND)] = "auto",
    every: Annotated[bool, flag(HOW, _ALL, "--all")] = False,
    save: Annotated[Path | None, option(OUTPUT, "FILE", _SAVE)] = None,
    plot: Annotated[
        Path | None, option(OUTPUT, "FILE", "Draw the scores into this .svg.")
    ] = None,
    as_json: AsJson = False,
    verbose: Verbose = 0,
    log_file: LogFile = None,
) -> None:
    """Rank the ops of MODEL by what quantizing each one alone costs.

    0 is no change; the most sensitive come first.
    """
    if data is None:
        raise ConfigError("calibration samples are missing: give --data")
    existing(data, "--data", SAMPLES)
    settings = TuningConfig.read(
        config, baseline=None, **({"backends": (backend,)} if backend else {})
    )
    host = check_parts(settings)
    check_model(model, host)
    with ExitStack() as stack:
        stack.enter_context(logged(verbose, log_file))
        openings = open_all(
            source(model),
            list(islice(read_samples(data, labels).batches(batch_size), batches)),
            settings,
            host,
            stack,
        )
        target = openings.backends[-1]
        space = build_space(
            target,
            settings.rules,
            require=settings.require,
            simulated=settings.simulated,
            host=host,
        )
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
        realizer.calibrate(openings.data[target.name])
        phases = Phases((stack.enter_context(ProgressDisplay()),), ahead=())
        service = SensitivityService(
            target,
            realizer,
            tuple(openings.data[target.name]),
            save,
            watched=partial(phases.probes, about=f"on {target.name}"),
            output_metric=settings.output_metric,
        )
        found = _scores(service, kind, space.tunable, every)
        if save is not None:
            service.save(save)
    ranked = sorted(space.tunable, key=lambda unit: -max(found[unit.name].values()))
    asked = service.preferred if kind == "auto" else kind
    loss = asked.replace("_", " ")
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


def _ranking(ranked: Sequence[Unit], found: Losses, loss: str) -> Group:
    """Return the table, the most sensitive first, and what its short names stand for."""
    losses = [value for own in found.values() for value in own.values()]
    bar = _bars(losses, BAR // 2 if out().width < NARROW else BAR)
    schemes = [scheme for unit in ranked for scheme in found[unit.name]]
    names = distinct(schemes)
    rows: list[tuple[object, ...]] = []
    for unit in ranked:
        weights = f"{unit.parameters:,}" if unit.parameters else ""
        worst_first = sorted(found[unit.name].items(), key=lambda pair: -pair[1])
        for scheme, value in worst_first:
            who = (unit.name, unit.type, weights, names[scheme])
            rows.append((*who, _shown(value), bar(value)))
    columns = ("op", "type", "weights", "scheme", loss, "log scale")
    ranking = table(
        columns,
        rows,
        right=("weights", loss),
        least=("type", "weights", "log scale"),
    )
    return Group(ranking, table(("short", "in full"), legend(schemes)))


def _draw(path: Path, ranked: Sequence[Unit], found: Losses, loss: str) -> None:
    from octavo.core.report.charts import sensitivities

    rows = [(u.name, str(s), v) for u in ranked for s, v in found[u.name].items()]
    write_text(path, sensitivities(rows, loss))
    say(f"plot: {path}")


def _scores(
    service: SensitivityService, kind: str, units: Sequence[Unit], every: bool
) -> dict[str, dict[OpScheme, float]]:
    """Return unit -> scheme -> loss; all are asked for together, so that they can be counted."""
    pairs = [(u.name, scheme) for u in units for scheme in _wanted(u, every)]
    found: dict[str, dict[OpScheme, float]] = {unit.name: {} for unit in units}
    for (name, scheme), loss in zip(pairs, service(kind, pairs), strict=True):
        found[name][scheme] = loss
    return found


def _wanted(unit: Unit, every: bool) -> list[OpScheme]:
    """Return a unit's quantized schemes, or the first of each mode."""
    quantized = [scheme for scheme in unit.choices if not scheme.is_float]
    modes: dict[str, OpScheme] = {}
    for scheme in quantized:
        modes.setdefault(scheme.mode, scheme)
    return quantized if every else list(modes.values())


def _bars(losses: Sequence[float], longest: int) -> Callable[[float], str]:
    """Return a function that draws a loss as a bar whose length grows with its logarithm, over the
    losses that were found.

    Args:
        losses: All of them.
        longest: Characters of the longest bar.
    """
    block = FULL if is_unicode(sys.stdout) else ASCII
    logs = [math.log(v) for v in losses if 0 < v < math.inf]
    low = min(logs, default=0.0)
    high = max(logs, default=0.0)

    def bar(value: float) -> str:
        if not 0 < value < math.inf:
            return ""
        if high == low:
            return block
        share = (math.log(value) - low) / (high - low)
        return block * (1 + round((longest - 1) * share))

    return bar


def _shown(value: float) -> Text:
    if value == float("inf"):
        return Text("cannot be carried out", "yellow")
    return Text(f"{value:.3g}")
