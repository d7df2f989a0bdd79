"""The report's charts of the search, of the weights and of sensitivities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import cycle
from typing import TYPE_CHECKING

from octavo.core.values.trial import Trial

from .drawing import (
    BAD,
    FAINT,
    GOOD,
    GRID,
    INK,
    LIGHT,
    SERIES,
    logarithmic,
    new_figure,
    short,
    styled,
    to_svg,
)
from .model import OpLine, ReportData
from .text import size

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@styled
def search(data: ReportData) -> str:
    """Score of every trial in order, with the goal and the best so far.

    Returns:
        An ``<svg>`` element, or an empty string for fewer than two trials.
    """
    trials = data.completed
    if len(trials) < 2:
        return ""
    from matplotlib.ticker import MaxNLocator

    figure, axes = new_figure(9.6, 2.6)
    passing = [trial for trial in trials if trial.passed]
    others = [trial for trial in trials if not trial.passed]
    _draw_trials(axes, passing, data.metric, (GOOD, "o", "passes"))
    _draw_trials(axes, others, data.metric, (BAD, "x", "does not pass"))
    level = data.baseline.metrics[data.metric]
    axes.axhline(level, color=INK, linewidth=1, linestyle=":", label="float model")
    if data.bound is not None:
        axes.axhline(data.bound, color=GOOD, linewidth=1.2, label="goal")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("trial")
    axes.set_ylabel(data.metric)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.26), ncols=4, fontsize=9)
    reached = len(passing)
    told = f"{data.metric} of {len(trials)} trials in order; {reached} reach the goal."
    return to_svg(figure, "search", "The search, trial by trial", told)


def _draw_trials(
    axes: Axes, group: Sequence[Trial], metric: str, look: tuple[str, str, str]
) -> None:
    """Draw the scores of some trials; the look is a colour, a marker and a label."""
    if not group:
        return
    numbers = [trial.number for trial in group]
    scores = [trial.metrics[metric] for trial in group]
    colour, marker, label = look
    axes.scatter(numbers, scores, s=36, color=colour, marker=marker, label=label)


@styled
def layers(ops: Sequence[OpLine], most: int = 48) -> str:
    """Weight bytes of each op in float and as it runs, in the model's order.

    Args:
        ops: The model's.
        most: The largest so many ops of a larger model are shown.

    Returns:
        An ``<svg>`` element, or an empty string where no op has a weight.
    """
    weighted = [op for op in ops if op.parameters]
    if not weighted:
        return ""
    kept = sorted(weighted, key=lambda o: -o.parameters)[:most]
    shown = [op for op in weighted if op in kept]
    figure, axes = new_figure(8.6, 0.6 + 0.24 * len(shown))
    _draw_weights(axes, shown)
    _name_rows(axes, [op.name for op in shown])
    axes.xaxis.set_major_formatter(lambda value, _: size(value))
    axes.set_xlabel("weights")
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    # The distance is a share of the axes' height: a taller chart needs a smaller one.
    below = (0.4, -0.5 / max(1.0, 0.24 * len(shown)))
    axes.legend(
        list(once.values()),
        list(once),
        loc="upper center",
        bbox_to_anchor=below,
        fontsize=8,
    )
    left_out = ""
    if len(weighted) > most:
        left_out = f", the {most} largest of {len(weighted)}"
    told = (
        f"Bytes of the weights of each op in float and as they run{left_out}. The table of all "
        "ops has the same figures."
    )
    return to_svg(figure, "layers", "Weights, layer by layer", told)


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Name the rows of bars, from top to bottom."""
    axes.set_yticks(range(len(names)), list(map(short, names)), fontsize=8)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")


def _draw_weights(axes: Axes, shown: Sequence[OpLine]) -> None:
    in_float = [4 * op.parameters for op in shown]
    axes.barh(range(len(shown)), in_float, color=GRID, height=0.78, label="float")
    schemes = list(dict.fromkeys(str(op.line.applied) for op in shown))
    quantized = [scheme for scheme in schemes if scheme != "float"]
    # More schemes than colours begin again with the first.
    colours = dict(zip(quantized, cycle(SERIES), strict=False))
    for scheme in schemes:
        rows = []
        sizes = []
        for row, op in enumerate(shown):
            applied = op.line.applied
            if str(applied) == scheme:
                rows.append(row)
                sizes.append(op.parameters * applied.weight_bits / 8)
        axes.barh(
            rows,
            sizes,
            color=colours.get(scheme, FAINT),
            height=0.5,
            label=scheme,
        )


@styled
def sensitivities(
    rows: Sequence[tuple[str, str, float]], kind: str, most: int = 48
) -> str:
    """Losses as bars, a colour for each scheme; the ``most`` highest of more.

    Args:
        rows: (unit, scheme, loss), the units in the order to draw.
        kind: What the loss is.
        most: Units at most.

    Returns:
        A whole SVG file, in light dress.
    """
    every = list(dict.fromkeys(unit for unit, _, _ in rows))
    units = every[:most]
    schemes = list(dict.fromkeys(scheme for _, scheme, _ in rows))
    per_unit = max(0.24, 0.1 * len(schemes))
    figure, axes = new_figure(8.6, 0.9 + per_unit * len(units))
    _draw_losses(axes, rows, units, schemes)
    values = [v for _, _, v in rows if 0 < v < math.inf]
    # Losses of layers often lie orders of magnitude apart: the small ones would be bars of no
    # length.
    if values and max(values) > 50 * min(values):
        logarithmic(axes, (1.0,))
    _name_rows(axes, units)
    axes.set_xlabel(f"{kind}; less is better")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), fontsize=8)
    title = f"Sensitivity of {len(units)} units"
    told = f"{kind} when one unit alone takes a scheme."
    svg = to_svg(figure, "sensitivity", title, told)
    # A file of its own has no style sheet that would give the variables their colours.
    for variable, colour in LIGHT.items():
        svg = svg.replace(f"var(--{variable})", colour)
    return svg


def _draw_losses(
    axes: Axes,
    rows: Sequence[tuple[str, str, float]],
    units: Sequence[str],
    schemes: Sequence[str],
) -> None:
    """Draw a bar for each unit and scheme that has a loss, those of one unit side by side."""
    height = 0.8 / len(schemes)
    middle = (len(schemes) - 1) / 2
    for index, scheme in enumerate(schemes):
        offset = (index - middle) * height
        own = {unit: loss for unit, of, loss in rows if of == scheme}
        places = []
        losses = []
        for row, unit in enumerate(units):
            loss = own.get(unit, math.nan)
            if math.isfinite(loss):
                places.append(row + offset)
                losses.append(loss)
        axes.barh(
            places,
            losses,
            height=height * 0.9,
            color=SERIES[index % len(SERIES)],
            label=scheme,
        )
