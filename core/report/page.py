"""From a finished run to one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from octavo.core.errors import ConfigError, MissingFramework, StoreError, raised_as
from octavo.core.system.textfiles import absolute, write_text

from . import text
from .model import ReportData


def render(data: ReportData) -> str:
    """Return the page. It holds everything it shows and asks no network for anything.

    Raises:
        MissingFramework: If the extra ``octavo[report]`` is not installed.
        ConfigError: If the figures cannot be drawn.
    """
    try:
        import jinja2
        import matplotlib as _  # noqa: F401 - the charts need it; said here, before any work
        from markupsafe import Markup
    except ImportError as error:
        raise MissingFramework(
            f"a report cannot be drawn: {error}; pip install 'octavo[report]'"
        ) from error
    with raised_as(
        ConfigError, "the report cannot be drawn from the record of this result"
    ):
        return _drawn(data, jinja2, Markup)


def _drawn(data: ReportData, jinja2: Any, markup: Any) -> str:
    from . import charts, drawing
    from .trade_off import trade_off

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("octavo.core.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        size=text.size,
        measured=text.measured,
        relative=text.pair,
        ratio=text.ratio,
        score=text.score,
        bits=text.bits,
    )
    trials = (data.baseline, *data.trials)
    objectives = tuple(dict.fromkeys(name for t in trials for name in t.objectives))
    drawn: dict[str, Any] = {
        "trade_off": markup(trade_off(data, _horizontal(objectives)))
        if objectives
        else "",
        "search": markup(charts.search(data)),
        "layers": markup(charts.layers(data.ops)),
    }
    page: str = environment.get_template("page.html.j2").render(
        run=data, charts=drawn, objectives=objectives, light=drawing.LIGHT
    )
    return page


def _horizontal(objectives: tuple[str, ...]) -> str:
    """Return the objective that the trade-off is drawn against: time, where it was measured."""
    return "latency" if "latency" in objectives else objectives[0]


def write(data: ReportData, path: str | Path) -> Path:
    """Render and write the page, whole or not at all, and return its path."""
    path = absolute(path, "a report")
    page = render(data)
    with raised_as(StoreError, f"the report cannot be written to {path}"):
        write_text(path, page)
    return path
