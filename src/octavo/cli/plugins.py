"""``octavo plugins``: what is loaded, what was left out and why, and what each plugin offers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import typer
from rich.text import Text

from octavo.core.contract.parts import Part
from octavo.core.contract.plugins import KINDS, PluginHost, PluginInfo
from octavo.core.report.tables import table

from .console import out, show_json
from .face.options import AsJson, Autoload

EXAMPLES = """
octavo plugins
octavo plugins --json
"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("plugins", epilog=EXAMPLES)(plugins)


def plugins(as_json: AsJson = False, autoload: Autoload = True) -> None:
    """List plugins and the parts they offer, without importing any framework."""
    host = PluginHost(third_party=autoload)
    parts = {kind: host.parts(kind) for kind in KINDS}
    if as_json:
        told = {kind: _parts_as_json(found) for kind, found in parts.items()}
        show_json({"plugins": _plugins_as_json(host), "parts": told})
        return
    console = out()
    rows = [(p.name, p.origin, _state(p), p.reason) for p in host.plugins()]
    console.print(table(("plugin", "from", "state", "note"), rows))
    offered: list[tuple[str, str, str]] = []
    for kind, found in parts.items():
        for name, part in sorted(found.items()):
            offered.append((kind, name, part.summary))
    console.print(table(("kind", "part", "what it does"), offered))


def _state(plugin: PluginInfo) -> Text:
    """Return whether a plugin works, and if not, whether it is broken or lacks something."""
    if not plugin.loaded:
        return Text("left out", "red")
    if plugin.reason:
        return Text("not usable", "yellow")
    return Text("loaded", "green")


def _plugins_as_json(host: PluginHost) -> list[dict[str, Any]]:
    return [
        {
            "name": plugin.name,
            "origin": plugin.origin,
            "loaded": plugin.loaded,
            "usable": plugin.loaded and not plugin.reason,
            "reason": plugin.reason,
        }
        for plugin in host.plugins()
    ]


def _parts_as_json(parts: Mapping[str, Part[Any]]) -> dict[str, dict[str, str]]:
    found = {}
    for name, part in parts.items():
        found[name] = {"summary": part.summary, "target": part.target}
    return found
