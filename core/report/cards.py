"""A result in a notebook: its cards, and the front of accuracy against cost as a small picture.

Plain HTML and SVG with styles of their own: no script, no other library, light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from octavo.core.values.trial import Measurement, Trial

from . import text
from .front import front, is_best
from .model import ReportData
from .next_steps import NextSteps

_WIDTH, _HEIGHT, _MARGIN = 460, 210, 44
"""Sides of the picture and the room for its axes, in pixels: half of a notebook's line."""

_STYLE = """
.octavo { font: 14px/1.45 system-ui, sans-serif; max-width: 56rem; }
.octavo, .octavo pre { color: inherit; }
.octavo .cards { display: flex; flex-wrap: wrap; gap: .6rem; margin: .5rem 0; }
.octavo .card { border: 1px solid rgba(128, 128, 128, .5); border-radius: .5rem;
  padding: .4rem .8rem; }
.octavo .card b { display: block; font-size: 1.3rem; }
.octavo small, .octavo .why { opacity: .8; }
.octavo .yes { border-left: .3rem solid #1a8f52; padding-left: .5rem; }
.octavo .no { border-left: .3rem solid #c7352b; padding-left: .5rem; }
.octavo pre { border: 1px solid rgba(128, 128, 128, .5); padding: .5rem; overflow-x: auto;
  background: transparent; }
.octavo svg { max-width: 100%; height: auto; display: block; }
.octavo svg text { fill: currentColor; font-size: 11px; }
.octavo svg line { stroke: currentColor; stroke-opacity: .35; }
"""


def result_html(data: ReportData, steps: NextSteps) -> str:
    """Return a run for a notebook: verdict, cards, the front, what next.

    Args:
        data: The run.
        steps: What a reader does next.
    """
    side = "yes" if data.goal_met else "no"
    verdict = f"<b>{escape(data.verdict)}</b> <small>{escape(data.goal)}</small>"
    parts = [
        f'<p class="{side}">{verdict}<br>{escape(data.why_best or data.reason)}</p>',
        f'<div class="cards">{"".join(_cards(data))}</div>',
        front_svg(data),
        *(f"<p>Warning: {escape(warning)}</p>" for warning in steps.warnings),
        *(_step_html(step.what, step.toml) for step in steps.steps),
        f"<pre><code>{escape(steps.code)}</code></pre>" if steps.file else "",
    ]
    return wrapped("".join(parts))


def wrapped(inner: str) -> str:
    """Return HTML with the style of what octavo shows in notebooks."""
    return f'<div class="octavo"><style>{_STYLE}</style>{inner}</div>'


def card(title: str, shown: str, below: str) -> str:
    """Return one card: a title, a figure, and what belongs beside it."""
    return (
        f'<div class="card"><small>{escape(title)}</small><b>{escape(shown)}</b>'
        f"<small>{escape(below)}</small></div>"
    )


def _cards(data: ReportData) -> list[str]:
    best = data.best or data.baseline
    own = f"float {text.score(data.baseline, data.metric)}"
    sampling = best.sampling.get(data.metric)
    if sampling is not None:
        own = f"{own}; {text.samples(sampling)}"
    found = [card(data.metric, text.score(best, data.metric), own)]
    is_compared = data.best is not None
    names = data.baseline.objectives
    found += [_cost_card(n, best.objectives.get(n), is_compared) for n in names]
    passed = sum(trial.passed for trial in data.trials)
    found.append(card("trials", str(len(data.trials)), f"{passed} reach the goal"))
    return found


def _cost_card(name: str, measured: Measurement | None, is_compared: bool) -> str:
    if measured is None or measured.base is None or not is_compared:
        return card(name, text.measured(measured), "")
    pair = f"{text.measured(measured)} of {text.base(measured)}"
    return card(f"{name} of float", text.ratio(measured), pair)


def _step_html(what: str, toml: str) -> str:
    pasted = f"<pre><code>{escape(toml)}</code></pre>" if toml else ""
    return f"<p>Try: {escape(what)}</p>{pasted}"


@dataclass(frozen=True)
class _Axis:
    """Where figures lie between two edges of the picture."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """Return the place of a figure."""
        if self.high == self.low:
            return (self.start + self.end) / 2
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def front_svg(data: ReportData) -> str:
    """Return the picture of what trials score and cost; '' where there is nothing to show.

    The float model is at 1, marks that pass are filled, those on the front are joined.
    """
    name = next(iter(data.baseline.objectives), "")
    shown = _shown(data, name)
    if len(shown) < 2:
        return ""
    costs = [_cost(trial, name) for trial in shown]
    scores = [trial.metrics[data.metric] for trial in shown]
    across = _Axis(min(costs), max(costs), _MARGIN + _MARGIN / 2, _WIDTH - _MARGIN / 2)
    up = _Axis(min(scores), max(scores), _HEIGHT - _MARGIN - 8, 16)
    marks = []
    for trial, cost, score in zip(shown, costs, scores, strict=True):
        marks.append(_mark(trial, data, name, (across.at(cost), up.at(score))))
    title = f"{data.metric} against {name} of float, {len(shown)} models"
    line = _front_line(shown, data, name, across, up)
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" role="img">'
        f"<title>{escape(title)}</title>{_axes(across, up, name, data.metric)}{line}"
        f"{''.join(marks)}</svg>"
    )


def _shown(data: ReportData, name: str) -> list[Trial]:
    """Return the float model and the trials that have both figures."""
    trials = (data.baseline, *data.completed)
    found = [t for t in trials if name in t.objectives and data.metric in t.metrics]
    return [t for t in found if math.isfinite(_cost(t, name))]


def _cost(trial: Trial, name: str) -> float:
    """Return a trial's share of the float model's figure; float's own is 1."""
    measured = trial.objectives[name]
    if not trial.number:
        return 1.0
    return measured.value if measured.ratio is None else measured.ratio


def _mark(trial: Trial, data: ReportData, name: str, at: tuple[float, float]) -> str:
    """Return one mark with what is said where the pointer rests on it."""
    x, y = at
    is_ringed = is_best(data, trial)
    who = f"trial {trial.number}" if trial.number else "float model"
    told = (
        f"{who}{' (best)' if is_ringed else ''}: {data.metric} "
        f"{text.score(trial, data.metric)}, {name} {text.pair(trial.objectives[name])}"
    )
    colour = "#2f7de1" if trial.number else "#8a8f98"
    fill = colour if trial.passed or not trial.number else "none"
    ring = (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="9" fill="none" stroke="#d98200"'
        ' stroke-width="2"/>'
    )
    return (
        f"<g><title>{escape(told)}</title>{ring if is_ringed else ''}"
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{fill}" stroke="{colour}"'
        ' stroke-width="1.5"/></g>'
    )


def _front_line(
    shown: Sequence[Trial], data: ReportData, name: str, across: _Axis, up: _Axis
) -> str:
    """Return the line that joins the passing trials which no other one beats in both figures."""
    sign = 1 if data.baseline.objectives[name].lower_is_better else -1
    joined = front(data, shown, lambda trial: sign * _cost(trial, name))
    if len(joined) < 2:
        return ""
    points = []
    for trial in joined:
        x, y = across.at(_cost(trial, name)), up.at(trial.metrics[data.metric])
        points.append(f"{x:.1f},{y:.1f}")
    return (
        f'<polyline points="{" ".join(points)}" fill="none" stroke="#2f7de1" '
        'stroke-opacity=".5"/>'
    )


def _axes(across: _Axis, up: _Axis, name: str, metric: str) -> str:
    """Return both axes with the figures at their ends."""
    bottom = _HEIGHT - _MARGIN
    left, right = _MARGIN, _WIDTH - 8
    lines = (
        f'<line x1="{left}" y1="{bottom}" x2="{right}" y2="{bottom}"/>'
        f'<line x1="{left}" y1="8" x2="{left}" y2="{bottom}"/>'
    )
    texts = [
        _text(across.start, bottom + 14, f"{across.low:.3g}"),
        _text((left + right) / 2, bottom + 30, f"{name} of float"),
        _text(left - 4, up.start, f"{up.low:.3g}", "end"),
        _text(left, 8, metric, "start"),
    ]
    if across.high > across.low:
        texts.append(_text(across.end, bottom + 14, f"{across.high:.3g}"))
    if up.high > up.low:
        texts.append(_text(left - 4, up.end + 4, f"{up.high:.3g}", "end"))
    return lines + "".join(texts)


def _text(x: float, y: float, said: str, anchor: str = "middle") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f"<text {place}>{escape(said)}</text>"
