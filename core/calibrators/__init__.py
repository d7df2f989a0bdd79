"""Built-in calibrators: observed activations -> a range. A plugin module, as a third party would write one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from ..hookspecs import hookimpl
from ..parts import Part, PartConfig


class MinMaxConfig(PartConfig):
    """The smallest and the largest value seen."""

    kind: Literal["minmax"] = "minmax"


@hookimpl
def octavo_calibrators() -> Iterable[Part[Any]]:
    """Offer the built-in calibrators."""
    return (Part("minmax", "octavo.core.calibrators.minmax:MinMax", MinMaxConfig, "smallest and largest value seen"),)
