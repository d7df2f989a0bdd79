"""``octavo plugins``: what is loaded, what was left out and why, and what each plugin offers."""

from __future__ import annotations

from typing import Annotated

import typer

from octavo.core.contract.plugins import KINDS, PluginHost

from .console import out, show_json, table


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
        show_json(
            {
                "plugins": [
                    {
                        "name": i.name,
                        "origin": i.origin,
                        "loaded": i.loaded,
                        "reason": i.reason,
                    }
                    for i in host.plugins()
                ],
                "parts": {
                    kind: {
                        n: {"summary": p.summary, "target": p.target}
                        for n, p in found.items()
                    }
                    for kind, found in parts.items()
                },
            }
        )
        return
    console = out()
    rows = [
        (i.name, i.origin, "loaded" if i.loaded else "left out", i.reason)
        for i in host.plugins()
    ]
    console.print(table(("plugin", "from", "state", "note"), rows))
    offered = [
        (kind, name, part.summary)
        for kind, found in parts.items()
        for name, part in sorted(found.items())
    ]
    console.print(table(("kind", "part", "what it does"), offered))
