"""Built-in criteria: is a candidate good enough? A plugin module, as a third party
would write one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from octavo.core.contract.hookspecs import hookimpl
from octavo.core.contract.parts import Part

from .config import ToleranceConfig


@hookimpl
def octavo_criteria() -> Iterable[Part[Any]]:
    """Offer the built-in criterion."""
    return (
        Part(
            "tolerance",
            "octavo.core.scoring.criteria.tolerance:Tolerance",
            ToleranceConfig,
            "loss against the float model, relative or absolute",
        ),
    )
