"""The report's charts, as SVG that is put straight into the page.

Text stays text (it can be searched, copied and read aloud), and colours are CSS variables of the page, so that charts
follow its light and dark dress.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from functools import wraps
from html import escape
from typing import TYPE_CHECKING, Any, ParamSpec

from octavo.core.values.trial import Trial

from .model import OpLine, ReportData
from .text import measured, size

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# matplotlib takes colours, not CSS variables: each of these stands for a variable and is replaced in the SVG.
INK, FAINT, GRID, PAPER, GOOD, BAD, ACCENT = (
    "#010101",
    "#020202",
    "#030303",
    "#040404",
    "#050505",
    "#060606",
    "#070707",
)
SERIES = ("#080801", "#080802", "#080803", "#080804", "#080805", "#080806")
_VARIABLES = {
    INK: "ink",
    FAINT: "faint",
    GRID: "grid",
    PAPER: "paper",
    GOOD: "good",
    BAD: "bad",
    ACCENT: "accent",
} | {colour: f"series-{i}" for i, colour in enumerate(SERIES)}
LIGHT = {
    "ink": "#1b1f26", "faint": "#5b6472", "grid": "#e1e5eb", "paper": "#ffffff", "accent": "#0a58ca", "good": "#14713f", "bad": "#b3261e",
    "series-0": "#0a58ca", "series-1": "#b45309", "series-2": "#0f766e", "series-3": "#7c3aed", "series-4": "#be185d", "series-5": "#4d7c0f",
}  # fmt: skip
"""The light dress; the page's style sheet takes it from here."""
MARKERS = ("o", "s", "^", "D", "v", "P")
"""Backends differ in shape as well as in colour."""

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


def _styled(draw: Callable[P, str]) -> Callable[P, str]:
    """Draw in the house style and leave the user's own settings of matplotlib alone."""

    @wraps(draw)
    def styled(*arguments: P.args, **named: P.kwargs) -> str:
        from matplotlib import rc_context

        with rc_context(_STYLE):  # type: ignore[arg-type]
            return draw(*arguments, **named)

    return styled


@_styled
def trade_off(data: ReportData, objective: str) -> str:
    """Score against one objective, a bubble's area the size of the saved model; one shape a backend.

    Args:
        data: The run.
        objective: What the horizontal axis shows.

    Returns:
        An ``<svg>`` element, or an empty string where no trial has both numbers.
    """
    shown = [
        t
        for t in (data.baseline, *data.completed)
        if objective in t.objectives and data.metric in t.metrics
    ]
    if len(shown) < 2:
        return ""
    figure, axes = _figure(9.6, 4.6)
    backends = sorted({t.recipe.backend for t in shown if t is not data.baseline})
    largest = max(
        (t.objectives["size"].value for t in shown if "size" in t.objectives), default=1.0
    )

    def area(trial: Trial) -> float:
        return (
            40 + 360 * trial.objectives["size"].value / largest
            if "size" in trial.objectives
            else 90.0
        )

    # Ratios are taken in one interleaved run, so they can be compared across trials when the machine's speed drifts.
    relative = all(t is data.baseline or t.objectives[objective].ratio is not None for t in shown)

    def place(trial: Trial) -> tuple[float, float]:
        m = trial.objectives[objective]
        cost = m.value if not relative else 1.0 if trial is data.baseline else float(m.ratio or 0.0)
        return cost, trial.metrics[data.metric]

    front = _front([place(t) for t in shown if t.passed], data.higher_is_better)
    if len(front) > 1:
        axes.plot(
            *zip(*front, strict=True),
            color=FAINT,
            linewidth=1,
            linestyle=(0, (4, 3)),
            zorder=1,
            label="best trade-offs",
        )
    for index, backend in enumerate(backends):
        colour, marker = SERIES[index % len(SERIES)], MARKERS[index % len(MARKERS)]
        for passed in (True, False):
            group = [
                t
                for t in shown
                if t is not data.baseline and t.recipe.backend == backend and t.passed is passed
            ]
            if group:
                xs, ys = zip(*map(place, group), strict=True)
                label = f"{backend or 'trial'}, {'passes' if passed else 'does not pass'}"
                sizes, filling = [area(t) for t in group], colour if passed else "none"
                axes.scatter(
                    xs,
                    ys,
                    s=sizes,
                    marker=marker,
                    linewidths=1.6,
                    edgecolors=colour,
                    facecolors=filling,
                    alpha=0.75,
                    label=label,
                )
    axes.scatter(
        *place(data.baseline),
        s=area(data.baseline),
        marker="X",
        color=INK,
        label="float model",
        zorder=3,
    )
    if data.best is not None and any(t.number == data.best.number for t in shown):
        x, y = place(data.best)
        axes.scatter(
            x,
            y,
            s=area(data.best) * 1.9,
            marker="o",
            facecolors="none",
            edgecolors=ACCENT,
            linewidths=2,
            zorder=4,
            label="best",
        )
        axes.annotate(
            f"best: #{data.best.number}",
            (x, y),
            xytext=(0, -24),
            textcoords="offset points",
            ha="center",
            color=ACCENT,
            fontweight="bold",
        )
    if data.bound is not None:
        axes.axhline(data.bound, color=GOOD, linewidth=1.2, label="goal")
    costs = [place(t)[0] for t in shown]
    unit = shown[0].objectives[objective].unit
    axes.set_xlabel(
        f"{objective}{', share of the float model' if relative else f' ({unit})' if unit else ''}; less is better"
    )
    axes.set_ylabel(f"{data.metric}; {'more' if data.higher_is_better else 'less'} is better")
    if min(costs) > 0 and max(costs) / min(costs) > 8:
        _logarithmic(axes, (1.0, 2.0, 5.0))
        axes.margins(x=0.12)
    else:
        axes.set_xlim(left=0)
        if unit == "bytes" and not relative:
            axes.xaxis.set_major_formatter(lambda value, _: size(value))
    axes.margins(y=0.18)
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, markerscale=0.6, fontsize=9
    )
    best = (
        f" The best, trial {data.best.number}, takes {measured(data.best.objectives.get(objective))}."
        if data.best
        else ""
    )
    told = (
        f"{data.metric} against {objective} of {len(shown) - 1} trials and the float model.{best}"
    )
    return _svg(
        figure,
        "trade-off",
        "Accuracy, latency and size of every trial"
        if objective == "latency"
        else f"{data.metric} and {objective}",
        told,
    )


def _front(
    points: Sequence[tuple[float, float]], higher_is_better: bool
) -> list[tuple[float, float]]:
    """Points that no other one beats in both axes, from the cheapest on."""
    sign = 1 if higher_is_better else -1
    front: list[tuple[float, float]] = []
    for cost, value in sorted(set(points), key=lambda p: (p[0], -sign * p[1])):
        if not front or sign * value > sign * front[-1][1]:
            front.append((cost, value))
    return front


@_styled
def search(data: ReportData) -> str:
    """Score of every trial in order, with the goal and the best so far. An empty string for fewer than two trials."""
    trials = data.completed
    if len(trials) < 2:
        return ""
    from matplotlib.ticker import MaxNLocator

    figure, axes = _figure(9.6, 2.6)
    for passed, colour, marker in ((True, GOOD, "o"), (False, BAD, "x")):
        group = [t for t in trials if t.passed is passed]
        if group:
            axes.scatter(
                [t.number for t in group],
                [t.metrics[data.metric] for t in group],
                color=colour,
                marker=marker,
                s=36,
                label="passes" if passed else "does not pass",
            )
    axes.axhline(
        data.baseline.metrics[data.metric],
        color=INK,
        linewidth=1,
        linestyle=":",
        label="float model",
    )
    if data.bound is not None:
        axes.axhline(data.bound, color=GOOD, linewidth=1.2, label="goal")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("trial")
    axes.set_ylabel(data.metric)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.26), ncols=4, fontsize=9)
    reached = sum(t.passed for t in trials)
    return _svg(
        figure,
        "search",
        "The search, trial by trial",
        f"{data.metric} of {len(trials)} trials in order; {reached} reach the goal.",
    )


@_styled
def layers(ops: Sequence[OpLine], most: int = 48) -> str:
    """Weight bytes of each op in float and as it runs, in the model's order; the largest ``most`` ops of a larger model."""
    weighted = [op for op in ops if op.parameters]
    if not weighted:
        return ""
    kept = sorted(weighted, key=lambda o: -o.parameters)[:most]
    shown = [op for op in weighted if op in kept]
    figure, axes = _figure(8.6, 0.6 + 0.24 * len(shown))
    schemes = list(dict.fromkeys(str(op.line.applied) for op in shown))
    position = range(len(shown))
    axes.barh(position, [4 * op.parameters for op in shown], color=GRID, height=0.78, label="float")
    for scheme in schemes:
        rows = [(i, op) for i, op in enumerate(shown) if str(op.line.applied) == scheme]
        colour = (
            FAINT
            if scheme == "float"
            else SERIES[[s for s in schemes if s != "float"].index(scheme) % len(SERIES)]
        )
        axes.barh(
            [i for i, _ in rows],
            [op.parameters * op.line.applied.weight_bits / 8 for _, op in rows],
            color=colour,
            height=0.5,
            label=scheme,
        )
    axes.set_yticks(list(position), [_short(op.name) for op in shown], fontsize=8)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_formatter(lambda value, _: size(value))
    axes.set_xlabel("weights")
    handles, labels = axes.get_legend_handles_labels()
    pairs = dict(zip(labels, handles, strict=True))
    axes.legend(
        pairs.values(),
        pairs.keys(),
        loc="upper center",
        bbox_to_anchor=(0.4, -0.5 / max(1.0, 0.24 * len(shown))),
        fontsize=8,
    )
    left_out = f", the {most} largest of {len(weighted)}" if len(weighted) > most else ""
    return _svg(
        figure,
        "layers",
        "Weights, layer by layer",
        f"Bytes of the weights of each op in float and as they run{left_out}. The table of all ops has the same figures.",
    )


@_styled
def sensitivities(rows: Sequence[tuple[str, str, float]], kind: str, most: int = 48) -> str:
    """Losses as bars, a colour for each scheme; the ``most`` highest of more. A whole SVG file, in light dress.

    Args:
        rows: (unit, scheme, loss), the units in the order to draw.
        kind: What the loss is.
        most: Units at most.
    """
    units = list(dict.fromkeys(unit for unit, _, _ in rows))[:most]
    schemes = list(dict.fromkeys(scheme for _, scheme, _ in rows))
    height = 0.8 / len(schemes)
    figure, axes = _figure(8.6, 0.9 + max(0.24, 0.1 * len(schemes)) * len(units))
    for index, scheme in enumerate(schemes):
        own = [
            (units.index(u), v)
            for u, s, v in rows
            if s == scheme and u in units and math.isfinite(v)
        ]
        place = [i + (index - (len(schemes) - 1) / 2) * height for i, _ in own]
        axes.barh(
            place,
            [v for _, v in own],
            height=height * 0.9,
            color=SERIES[index % len(SERIES)],
            label=scheme,
        )
    values = [v for _, _, v in rows if 0 < v < math.inf]
    if values and max(values) > 50 * min(values):
        _logarithmic(axes, (1.0,))
    axes.set_yticks(range(len(units)), [_short(u) for u in units], fontsize=8)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(f"{kind}; less is better")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), fontsize=8)
    drawn = _svg(
        figure,
        "sensitivity",
        f"Sensitivity of {len(units)} units",
        f"{kind} when one unit alone takes a scheme.",
    )
    for variable, colour in LIGHT.items():
        drawn = drawn.replace(f"var(--{variable})", colour)
    return drawn


def _logarithmic(axes: Axes, steps: tuple[float, ...]) -> None:
    """Make the horizontal axis logarithmic, with figures as plain text at ``steps`` of each decade."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=steps))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())


def _short(name: str, limit: int = 40) -> str:
    return name if len(name) <= limit else "…" + name[1 - limit :]


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    # The object interface, not pyplot: no global state, no display, safe in a user's notebook.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    return figure, figure.add_subplot()


def _svg(figure: Figure, name: str, title: str, description: str) -> str:
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
        f'role="img" aria-labelledby="{name}-title {name}-desc"><title id="{name}-title">{escape(title)}</title>'
        f'<desc id="{name}-desc">{escape(description)}</desc>'
    )
    return head + drawn[found.end() :].strip()
