"""``octavo plugins``: what is loaded, what was left out and why, and what each plugin offers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from octavo.core.contract.parts import Part
from octavo.core.contract.plugins import KINDS, PluginHost
from octavo.core.report.tables import table

from .console import out, show_json


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("plugins")(plugins)


def plugins(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    autoload: Annotated[
        bool,
        typer.Option(
            "--autoload/--no-autoload", help="Load plugins of other distributions."
        ),
    ] = True,
) -> None:
    """List plugins and the parts they offer, without importing any framework."""
    host = PluginHost(third_party=autoload)
    parts = {kind: host.parts(kind) for kind in KINDS}
    if as_json:
        told = {kind: _parts_as_json(found) for kind, found in parts.items()}
        show_json({"plugins": _plugins_as_json(host), "parts": told})
        return
    console = out()
    rows = []
    for plugin in host.plugins():
        state = "loaded" if plugin.loaded else "left out"
        rows.append((plugin.name, plugin.origin, state, plugin.reason))
    console.print(table(("plugin", "from", "state", "note"), rows))
    offered: list[tuple[str, str, str]] = []
    for kind, found in parts.items():
        for name, part in sorted(found.items()):
            offered.append((kind, name, part.summary))
    console.print(table(("kind", "part", "what it does"), offered))


def _plugins_as_json(host: PluginHost) -> list[dict[str, Any]]:
    return [
        {
            "name": plugin.name,
            "origin": plugin.origin,
            "loaded": plugin.loaded,
            "reason": plugin.reason,
        }
        for plugin in host.plugins()
    ]


def _parts_as_json(parts: Mapping[str, Part[Any]]) -> dict[str, dict[str, str]]:
    found = {}
    for name, part in parts.items():
        found[name] = {"summary": part.summary, "target": part.target}
    return found
