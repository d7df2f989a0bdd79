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
# By their papers they make inputs easier to quantize at the weights' expense.
_FOR_INPUTS = frozenset({"static", "dynamic"})
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
            format="int8-static",
            modes=_FOR_INPUTS,
        ),
        Part(
            "awq",
            f"{_HERE}.awq:AwqScale",
            AwqScaleConfig,
            "salient weights scaled up before rounding",
            needs=_GRAM,
            format="int4-weight-only",
        ),
        Part(
            "equalization",
            f"{_HERE}.equalization:Equalization",
            EqualizationConfig,
            "cross-layer equalization of weight ranges; needs no data",
            format="int8-static",
        ),
        Part(
            "spiq",
            f"{_HERE}.spiq:Spiq",
            SpiqConfig,
            "input scales per channel as conversion scales",
            needs=_RANGE,
            format="int8-static",
            modes=_FOR_INPUTS,
        ),
        Part(
            "outlier_suppression",
            f"{_HERE}.suppression:OutlierSuppression",
            OutlierSuppressionConfig,
            "the scale of the norm moved into the weights that read it",
            format="int8-static",
            modes=_FOR_INPUTS,
            brings="token",
        ),
        Part(
            "outlier_suppression_plus",
            f"{_HERE}.suppression:OutlierSuppressionPlus",
            OutlierSuppressionPlusConfig,
            "channels centred, and those beyond a searched threshold scaled down to it",
            needs=_RANGE | _GRAM | {"channel_mean"},
            format="int8-static",
            modes=_FOR_INPUTS,
        ),
        Part(
            "hadamard",
            f"{_HERE}.rotation:Hadamard",
            HadamardConfig,
            "outliers spread over all channels by a Hadamard rotation",
            needs=frozenset({"rescale:rotation"}),
        ),
    )
