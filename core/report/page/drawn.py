"""From a finished run to one HTML file."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from octavo.core.errors import ConfigError, MissingFramework, StoreError, raised_as
from octavo.core.report import text
from octavo.core.report.model import ReportData
from octavo.core.report.next_steps import next_steps
from octavo.core.report.reading import flat
from octavo.core.system.textfiles import absolute, write_text
from octavo.core.values.trial import Trial

from .bars import op_bars
from .filters import FILTERS, breakable
from .front import size_against_loss
from .op_table import OpTable
from .recipes import Recipes
from .search import search
from .trade_off import trade_off

TEMPLATES = "templates"
MANIFEST = "octavo.json"
"""What a saved result's folder holds."""
MOST_METRICS = 4
"""Metrics with a column in the table of trials; a trial's own lines have all."""
BAR_COLUMNS = {
    "bytes": "bytes",
    "times": "time",
    "sensitivities": "sensitivity",
}
"""Which column of the table of ops leads to which chart."""


def render(data: ReportData, folder: Path | None = None) -> str:
    """Return the page. It holds everything it shows and asks no network for anything.

    Args:
        data: The run.
        folder: Where its result is saved; None where it is not.

    Raises:
        MissingFramework: If the extra ``octavo[report]`` is not installed.
        ConfigError: If the figures cannot be drawn.
    """
    try:
        import jinja2
        import matplotlib as _  # noqa: F401 - the axes need it; said here, before any work
        from markupsafe import Markup
    except ImportError as error:
        raise MissingFramework(
            f"a report cannot be drawn: {error}; pip install 'octavo[report]'"
        ) from error
    with raised_as(
        ConfigError, "the report cannot be drawn from the record of this result"
    ):
        return _drawn(data, folder, jinja2, Markup)


def _drawn(data: ReportData, folder: Path | None, jinja2: Any, markup: Any) -> str:
    environment = _environment(jinja2)
    environment.filters["breakable"] = lambda name: markup(breakable(str(name)))
    style = _inlined("page.css")
    script = _inlined("page.js")
    recipes = Recipes(data)
    page: str = environment.get_template("page.html.j2").render(
        run=data,
        policy=_policy(style, script),
        style=markup(style),
        script=markup(script),
        island=markup(recipes.island()),
        recipes=recipes,
        steps=next_steps(data, folder),
        **_sections(data, recipes),
    )
    return page.lstrip()


def _environment(jinja2: Any) -> Any:
    """Return what reads the templates: all is escaped, and nothing may be missing."""

    class Environment(jinja2.Environment):  # type: ignore[misc]
        """Takes attributes before items: a recipe answers any name with a scheme, as a mapping of
        ops does."""

        def getitem(self, obj: Any, argument: Any) -> Any:
            if isinstance(argument, str) and hasattr(obj, argument):
                return getattr(obj, argument)
            return super().getitem(obj, argument)

    environment = Environment(
        loader=jinja2.PackageLoader("octavo.core.report.page", TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(FILTERS)
    return environment


def _sections(data: ReportData, recipes: Recipes) -> dict[str, Any]:
    """Return what the sections of the page show, gathered before any of it is drawn."""
    trials = (data.baseline, *data.trials)
    objectives = tuple(dict.fromkeys(name for t in trials for name in t.objectives))
    metrics = tuple(dict.fromkeys(name for t in trials for name in t.metrics))
    drawn: dict[str, Any] = {
        "trade_off": trade_off(data, _horizontal(objectives)) if objectives else None,
        "front": size_against_loss(data),
        "search": search(data),
        "bars": op_bars(data),
    }
    ops = OpTable(data, recipes.names)
    return {
        "charts": drawn,
        "ops": ops,
        "objectives": objectives,
        "metrics": _first(data.metric, metrics),
        "shares": {name: _has_shares(data, name) for name in objectives},
        "shorts": {str(scheme): short for scheme, short in recipes.names.items()},
        "in_charts": _in_charts(drawn["bars"]),
        "rows": {op.name: row for row, op in enumerate(data.ops)},
        "contents": _contents(data, drawn),
        "record": _record(data),
    }


def _first(metric: str, metrics: tuple[str, ...]) -> tuple[str, ...]:
    """Return the metrics that have a column, that of the goal first."""
    others = [name for name in metrics if name != metric]
    return (metric, *others)[:MOST_METRICS]


def _has_shares(data: ReportData, objective: str) -> bool:
    """Return whether an objective's column is sorted by the share of the float model's."""
    return any(_ratio(trial, objective) is not None for trial in data.trials)


def _ratio(trial: Trial, objective: str) -> float | None:
    measured = trial.objectives.get(objective)
    return None if measured is None else measured.ratio


def _in_charts(charts: Any) -> dict[tuple[str, int], str]:
    """Return (column, row) -> the id of the bar that shows the same figure."""
    found = {}
    for chart in charts:
        for bar in chart.bars:
            key = (BAR_COLUMNS[chart.name], bar.row)
            found[key] = f"{chart.name}-{bar.row}"
    return found


def _contents(
    data: ReportData, charts: Mapping[str, Any]
) -> tuple[tuple[str, str], ...]:
    """Return the sections that the page has, by id and title."""
    sections = (
        ("result", "Result", True),
        ("comparison", "Float against best", True),
        ("final", "The last timing", bool(data.final)),
        ("next", "What next", True),
        ("trade-off", "Trade-off", charts["trade_off"] is not None),
        ("front", "Size against loss", data.has_losses),
        ("trials", "Trials", True),
        ("runs", "What runs", bool(data.schemes)),
        ("float", "Left in float", bool(data.ops)),
        ("coverage", "Float weights", bool(data.coverage.total)),
        ("layers", "Bytes, time, loss", bool(charts["bars"])),
        ("ops", "Op by op", bool(data.ops)),
        ("again", "Settings and machine", True),
    )
    return tuple((name, title) for name, title, is_there in sections if is_there)


def _record(data: ReportData) -> tuple[tuple[str, Mapping[str, str]], ...]:
    """Return the tables of the record beside the settings: (title, rows)."""
    return (
        ("Machine", _readable(data.machine)),
        ("Data", _readable(data.data)),
        ("Versions", data.versions),
    )


def _readable(table: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return what is known of a record in words: no empty fields, bytes with their unit."""
    rows: dict[str, str] = {}
    for key, value in table.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, Mapping):
            rows |= _readable(value, f"{name}, ")
        elif name.endswith(" bytes") and isinstance(value, (int, float)):
            rows[name.removesuffix(" bytes")] = text.size(value)
        elif value not in (None, "", [], ()):
            rows |= flat({name: value})
    return rows


def _horizontal(objectives: tuple[str, ...]) -> str:
    """Return the objective that the trade-off is drawn against: time, where it was measured."""
    return "latency" if "latency" in objectives else objectives[0]


def _inlined(name: str) -> str:
    """Return a file that stands in the page as it is."""
    return (files("octavo.core.report.page") / TEMPLATES / name).read_text(
        encoding="utf-8"
    )


def _policy(style: str, script: str) -> str:
    """Return the page's content security policy: nothing is loaded, and no style or script but its
    own is taken, even where a name from a model got past the escaping."""
    return (
        f"default-src 'none'; style-src '{_digest(style)}'; "
        f"script-src '{_digest(script)}'; base-uri 'none'; form-action 'none'"
    )


def _digest(content: str) -> str:
    found = hashlib.sha256(content.encode()).digest()
    return f"sha256-{base64.b64encode(found).decode()}"


def write(data: ReportData, path: str | Path, folder: Path | None = None) -> Path:
    """Render and write the page, whole or not at all, and return its path.

    Args:
        data: The run.
        path: The page.
        folder: Where the result is saved; None where it is not, or where the page stands in it.
    """
    path = absolute(path, "a report")
    if folder is None and (path.parent / MANIFEST).is_file():
        folder = path.parent
    page = render(data, folder)
    with raised_as(StoreError, f"the report cannot be written to {path}"):
        write_text(path, page)
    return path
