"""A backend for a framework that octavo has never heard of: chains of affine layers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from octavo.plugin import AdapterPart, PartConfig, hookimpl


class TinyConfig(PartConfig):
    """No settings but one."""

    kind: Literal["tiny"] = "tiny"
    bits: Literal[8] = 8


@hookimpl
def octavo_adapters() -> Iterable[AdapterPart[Any]]:
    return (
        AdapterPart(
            "tiny",
            "octavo_tiny.backend:TinyAdapter",
            TinyConfig,
            "chains of affine layers, int8",
            models=("octavo_tiny.model.Chain",),
            suffixes=(".tiny",),
        ),
    )
