"""A stranger's methods: a way to round and a calibrator, which schemes name as octavo's own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from octavo.plugin import Part, PartConfig, WeightConfig, hookimpl


class DownConfig(WeightConfig):
    """Settings of rounding down."""

    kind: Literal["Round_Down"] = "Round_Down"
    by: float = 0.5


class BareConfig(PartConfig):
    """An algorithm that knows no bias correction."""

    kind: Literal["bare"] = "bare"


class WideConfig(PartConfig):
    """Settings of the calibrator."""

    kind: Literal["wide"] = "wide"


@hookimpl
def octavo_algorithms() -> Iterable[Part[Any]]:
    return (
        Part(
            "Round_Down",
            "octavo_rounding.down:RoundDown",
            DownConfig,
            "codes rounded down",
            format="dynamic",
        ),
        Part(
            "bare",
            "octavo_rounding.down:RoundDown",
            BareConfig,
            "codes rounded down, and nothing else",
            modes=frozenset({"weight_only"}),
        ),
    )


@hookimpl
def octavo_calibrators() -> Iterable[Part[Any]]:
    return (
        Part("wide", "octavo_rounding.down:RoundDown", WideConfig, "twice the range"),
    )
