"""How the chart of sensitivities looks: colours, and a figure as SVG.

Text stays text: it can be searched, copied and read aloud.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable
from functools import wraps
from html import escape
from typing import TYPE_CHECKING, Any, ParamSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# matplotlib takes colours, not CSS variables: each of these stands for a variable and is replaced
# in the SVG.
INK = "#010101"
FAINT = "#020202"
GRID = "#030303"
SERIES = ("#080801", "#080802", "#080803", "#080804", "#080805", "#080806")
_VARIABLES = {
    INK: "ink",
    FAINT: "faint",
    GRID: "grid",
} | {colour: f"series-{i}" for i, colour in enumerate(SERIES)}
LIGHT = {
    "ink": "#1b1f26",
    "faint": "#5b6472",
    "grid": "#e1e5eb",
    "series-0": "#0a58ca",
    "series-1": "#b45309",
    "series-2": "#0f766e",
    "series-3": "#7c3aed",
    "series-4": "#be185d",
    "series-5": "#4d7c0f",
}
"""The light dress, in which a file of its own is drawn."""

_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "octavo",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "figure.facecolor": "none",
}


P = ParamSpec("P")


def styled(draw: Callable[P, str]) -> Callable[P, str]:
    """Draw in the house style and leave the user's own settings of matplotlib alone."""

    @wraps(draw)
    def drawn(*arguments: P.args, **named: P.kwargs) -> str:
        from matplotlib import rc_context

        with rc_context(_STYLE):  # type: ignore[arg-type]
            return draw(*arguments, **named)

    return drawn


def logarithmic(axes: Axes, steps: tuple[float, ...]) -> None:
    """Make the horizontal axis logarithmic, with figures as plain text at ``steps`` of
    each decade."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=steps))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())


def short(name: str, limit: int = 40) -> str:
    """Return a name of at most ``limit`` characters: its end tells more than its beginning."""
    return name if len(name) <= limit else "…" + name[1 - limit :]


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """Return an empty figure, sides in inches, and its axes."""
    # The object interface, not pyplot: no global state, no display, safe in a user's notebook.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    return figure, figure.add_subplot()


def to_svg(figure: Figure, name: str, title: str, description: str) -> str:
    """Return a figure as an ``<svg>`` element of the page.

    Args:
        figure: The figure.
        name: What makes its ids unique in the page.
        title: Read aloud first.
        description: Read aloud next.
    """
    buffer = io.StringIO()
    figure.savefig(
        buffer,
        format="svg",
        bbox_inches="tight",
        pad_inches=0.08,
        metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
    )
    drawn = buffer.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    # Several figures share one page: ids are made unique, the fixed size gives way to the page's.
    drawn = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', drawn)
    drawn = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", drawn)
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    for colour, variable in _VARIABLES.items():
        drawn = drawn.replace(colour, f"var(--{variable})")
    found = re.match(r'<svg[^>]*viewBox="0 0 ([\d.]+) ([\d.]+)"[^>]*>', drawn)
    assert found is not None
    width, height = math.ceil(float(found[1])), math.ceil(float(found[2]))
    head = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {width} {height}" width="{width * 4 // 3}" '
        f'role="img" aria-labelledby="{name}-title {name}-desc"><title '
        f'id="{name}-title">{escape(title)}</title>'
        f'<desc id="{name}-desc">{escape(description)}</desc>'
    )
    return head + drawn[found.end() :].strip()
