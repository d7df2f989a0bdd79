"""``octavo capabilities``: what backends can really carry out on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.text import Text

from octavo.core.contract.plugins import PluginHost
from octavo.core.errors import OctavoError
from octavo.core.opening.backends import only_backend
from octavo.core.opening.opening import open_model
from octavo.core.opening.speeds import measured
from octavo.core.report.tables import table
from octavo.core.values.capability import Capability, Offer
from octavo.core.values.recipe import adapter_of

from .console import out, show_json, warn
from .face.options import HOW, INPUT, AsJson, MaybeModel, flag, option
from .given.models import check_model, source

EXAMPLES = """
octavo capabilities
octavo capabilities model.onnx --measure
"""

_MEASURE = "Time every scheme beside float on a small sample, some 0.3 s each."


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("capabilities", epilog=EXAMPLES)(capabilities)


def capabilities(
    model: MaybeModel = None,
    backend: Annotated[
        str | None, option(INPUT, "NAME", "Only this backend.", "--backend", "-b")
    ] = None,
    measure: Annotated[bool, flag(HOW, _MEASURE, "--measure")] = False,
    as_json: AsJson = False,
) -> None:
    """Show which schemes run on this machine, and whether on a low-precision kernel.

    Per op type, the scheme to try first comes first.
    """
    host = PluginHost()
    if backend is not None:
        only_backend(backend, host)
    if model is not None:
        check_model(model, host)
        opened = open_model(source(model), host, backend=backend)
        found = [(opened.capability, {op.type for op in opened.view.ops})]
    else:
        cards = (
            [host.part("adapters", adapter_of(backend))]
            if backend
            else list(host.adapters().values())
        )
        found = [
            (answer, set(answer.offers))
            for card in cards
            if (answer := _ask(card)) is not None
        ]
    speeds = _Speeds(host if measure else None)
    if as_json:
        show_json([_as_json(answer, types, speeds) for answer, types in found])
        return
    for answer, types in found:
        _show(answer, types, speeds)


@dataclass(frozen=True)
class _Speeds:
    """Shares of float's speed, where somebody asked for them."""

    host: PluginHost | None

    def of(self, backend: str, kind: str, offer: Offer) -> float | None:
        """Return what a sample shows; None where it was not asked for, or there is no sample."""
        if self.host is None:
            return None
        return measured(self.host.adapters()[backend], kind, offer.scheme)

    def remark(self, backend: str, kind: str, offer: Offer) -> str:
        """Return what a reader must know of an offer."""
        speed = self.of(backend, kind, offer)
        shown = "" if speed is None else f"{speed:.2f} of float's speed on a sample"
        slow = f"slower than float: {offer.slower}" if offer.slower else ""
        return "; ".join(
            filter(None, (shown, slow, "some ops cannot" if offer.refuses else ""))
        )


def _ask(card: Any) -> Capability | None:
    """Ask a backend; one that is not installed, or answers for a model only, is left out with its
    reason."""
    try:
        answer: Capability = card.build().capability()
    except OctavoError as error:
        warn(f"{card.name}: {error}")
        return None
    return answer


def _show(answer: Capability, types: set[str], speeds: _Speeds) -> None:
    console = out()
    rows = []
    for kind in sorted(types & set(answer.offers)):
        for offer in answer.offers[kind]:
            colour = "green" if offer.realization == "kernel" else "yellow"
            carried_out_by = Text(offer.realization, colour)
            remark = speeds.remark(answer.backend, kind, offer)
            rows.append((kind, offer.scheme, carried_out_by, remark))
    title = f"{answer.backend} on {answer.device}"
    console.print(
        table(("op type", "scheme", "carried out by", "remark"), rows, title=title)
    )
    if rest := sorted(types - set(answer.offers)):
        console.print(f"float only: {', '.join(rest)}", soft_wrap=True)
    console.print(
        f"features: {', '.join(sorted(answer.features)) or 'none'}", soft_wrap=True
    )
    versions = ", ".join(
        f"{name} {version}" for name, version in answer.versions.items()
    )
    console.print(f"established on: {versions}", soft_wrap=True)


def _as_json(answer: Capability, types: set[str], speeds: _Speeds) -> dict[str, Any]:
    def row(kind: str, offer: Offer) -> dict[str, Any]:
        found: dict[str, Any] = {
            "scheme": str(offer.scheme),
            "realization": offer.realization,
            "slower": offer.slower,
        }
        speed = speeds.of(answer.backend, kind, offer)
        return found if speed is None else {**found, "speed": round(speed, 3)}

    return {
        "backend": answer.backend,
        "device": answer.device,
        "features": sorted(answer.features),
        "versions": dict(answer.versions),
        "offers": {
            kind: [row(kind, offer) for offer in answer.offers[kind]]
            for kind in sorted(types & set(answer.offers))
        },
    }
