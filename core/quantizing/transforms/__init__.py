"""Built-in rescalings: function-preserving changes of channels.

A plugin module, as a third party would write one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from octavo.core.contract.hookspecs import hookimpl
from octavo.core.contract.parts import Part

from .awq import AwqScaleConfig
from .equalization import EqualizationConfig
from .rotation import HadamardConfig
from .smoothquant import SmoothQuantConfig
from .spiq import SpiqConfig
from .suppression import OutlierSuppressionConfig, OutlierSuppressionPlusConfig

_HERE = "octavo.core.quantizing.transforms"
_RANGE, _GRAM = frozenset({"channel_range"}), frozenset({"gram"})


@hookimpl
def octavo_transforms() -> Iterable[Part[Any]]:
    """Offer the built-in rescalings."""
    return (
        Part(
            "smoothquant",
            f"{_HERE}.smoothquant:SmoothQuant",
            SmoothQuantConfig,
            "activation outliers moved into weights",
            needs=_RANGE | _GRAM,
        ),
        Part(
            "awq",
            f"{_HERE}.awq:AwqScale",
            AwqScaleConfig,
            "salient weights scaled up before rounding",
            needs=_GRAM,
        ),
        Part(
            "equalization",
            f"{_HERE}.equalization:Equalization",
            EqualizationConfig,
            "cross-layer equalization of weight ranges; needs no data",
        ),
        Part(
            "spiq",
            f"{_HERE}.spiq:Spiq",
            SpiqConfig,
            "input scales per channel as conversion scales",
            needs=_RANGE,
        ),
        Part(
            "outlier_suppression",
            f"{_HERE}.suppression:OutlierSuppression",
            OutlierSuppressionConfig,
            "the scale of the norm moved into the weights that read it",
        ),
        Part(
            "outlier_suppression_plus",
            f"{_HERE}.suppression:OutlierSuppressionPlus",
            OutlierSuppressionPlusConfig,
            "channels centred, and those beyond a searched threshold scaled down to it",
            needs=_RANGE | _GRAM | {"channel_mean"},
        ),
        Part(
            "hadamard",
            f"{_HERE}.rotation:Hadamard",
            HadamardConfig,
            "outliers spread over all channels by a Hadamard rotation",
            needs=frozenset({"rescale:rotation"}),
        ),
    )
