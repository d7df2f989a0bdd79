"""``octavo capabilities``: what backends can really carry out on this machine."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.text import Text

from octavo.core.capability import Capability
from octavo.core.errors import OctavoError
from octavo.core.opening import open_model
from octavo.core.plugins import PluginHost

from .console import out, show_json, table, warn
from .models import source


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("capabilities")(capabilities)


def capabilities(
    model: Annotated[str | None, typer.Argument(help="A model file, or module:name: only what this model has.")] = None,
    backend: Annotated[str | None, typer.Option("--backend", "-b", help="Only this backend.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List, per op type, the schemes that run here, the one to try first first, and whether a low-precision kernel runs them."""
    host = PluginHost()
    if model is not None:
        opened = open_model(source(model), host, backend=backend)
        found = [(opened.capability, {op.type for op in opened.view.ops})]
    else:
        cards = [host.part("adapters", backend)] if backend else list(host.adapters().values())
        found = [(answer, set(answer.offers)) for card in cards if (answer := _ask(card)) is not None]
    if as_json:
        show_json([_as_json(answer, types) for answer, types in found])
        return
    for answer, types in found:
        _show(answer, types)


def _ask(card: Any) -> Capability | None:
    """Ask a backend; one that is not installed, or answers for a model only, is left out with its reason."""
    try:
        answer: Capability = card.build().capability()
    except OctavoError as error:
        warn(f"{card.name}: {error}")
        return None
    return answer


def _show(answer: Capability, types: set[str]) -> None:
    console = out()
    rows = [
        (
            kind,
            offer.scheme,
            Text(offer.realization, "green" if offer.realization == "kernel" else "yellow"),
            "some ops cannot" if offer.when else "",
        )
        for kind in sorted(types & set(answer.offers))
        for offer in answer.offers[kind]
    ]
    console.print(table(("op type", "scheme", "carried out by", "remark"), rows, title=f"{answer.backend} on {answer.device}"))
    if rest := sorted(types - set(answer.offers)):
        console.print(f"float only: {', '.join(rest)}", soft_wrap=True)
    console.print(f"features: {', '.join(sorted(answer.features)) or 'none'}", soft_wrap=True)
    console.print("established on: " + ", ".join(f"{k} {v}" for k, v in answer.versions.items()), soft_wrap=True)


def _as_json(answer: Capability, types: set[str]) -> dict[str, Any]:
    return {
        "backend": answer.backend,
        "device": answer.device,
        "features": sorted(answer.features),
        "versions": dict(answer.versions),
        "offers": {
            kind: [{"scheme": str(o.scheme), "realization": o.realization} for o in answer.offers[kind]]
            for kind in sorted(types & set(answer.offers))
        },
    }
