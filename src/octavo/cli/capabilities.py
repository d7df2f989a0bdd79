"""``octavo capabilities``: what a backend can really carry out for a model on this machine."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from octavo.core.opening import open_model
from octavo.core.plugins import PluginHost

from .console import out, show_json, table
from .models import source


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("capabilities")(capabilities)


def capabilities(
    model: Annotated[str, typer.Argument(help="A model file, or module:name.")],
    backend: Annotated[str | None, typer.Option("--backend", "-b", help="Open with this backend.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Also op types that the model does not have.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List, per op type, the schemes that run here, the one to try first first, and whether a low-precision kernel runs them."""
    opened = open_model(source(model), PluginHost(), backend=backend)
    found = opened.capability
    present = {op.type for op in opened.view.ops}
    offers = {t: o for t, o in sorted(found.offers.items()) if every or t in present}
    if as_json:
        show_json(
            {
                "backend": found.backend,
                "device": found.device,
                "features": sorted(found.features),
                "versions": dict(found.versions),
                "offers": {t: [{"scheme": str(o.scheme), "realization": o.realization} for o in row] for t, row in offers.items()},
            }
        )
        return
    console = out()
    rows = [
        (kind, o.scheme, Text(o.realization, "green" if o.realization == "kernel" else "yellow"), "some ops cannot" if o.when else "")
        for kind, row in offers.items()
        for o in row
    ]
    console.print(table(("op type", "scheme", "carried out by", "remark"), rows, title=f"{found.backend} on {found.device}"))
    console.print(f"features: {', '.join(sorted(found.features)) or 'none'}", soft_wrap=True)
    console.print("established on: " + ", ".join(f"{k} {v}" for k, v in found.versions.items()), soft_wrap=True)
    if rest := sorted(present - set(offers)):
        console.print(f"float only: {', '.join(rest)}", soft_wrap=True)
