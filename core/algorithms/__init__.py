"""Built-in weight algorithms and rescalings. A plugin module, as a third party would write one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from ..hookspecs import hookimpl
from ..parts import Part, PartConfig


class RtnConfig(PartConfig):
    """Round to nearest."""

    kind: Literal["rtn"] = "rtn"


@hookimpl
def octavo_algorithms() -> Iterable[Part[Any]]:
    """Offer the built-in weight algorithms."""
    return (Part("rtn", "octavo.core.algorithms.rtn:RoundToNearest", RtnConfig, "round to nearest on the weight's own range"),)
