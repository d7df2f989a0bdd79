"""The chart of sensitivities, as a file of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .drawing import (
    LIGHT,
    SERIES,
    logarithmic,
    new_figure,
    short,
    styled,
    to_svg,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Name the rows of bars, from top to bottom."""
    axes.set_yticks(range(len(names)), list(map(short, names)), fontsize=8)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")


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
