"""Built-in weight algorithms. A plugin module, as a third party would write one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from octavo.core.contract.hookspecs import hookimpl
from octavo.core.contract.parts import Part

from .adaround import AdaRoundConfig
from .autoround import AutoRoundConfig
from .awq import AwqConfig
from .gptaq import GptaqConfig
from .gptq import GptqConfig
from .hqq import HqqConfig
from .importance import ImportanceConfig
from .low_rank import LowRankRepairConfig
from .rtn import RtnConfig
from .scale_estimation import ScaleEstimationConfig

_GRAM = frozenset({"gram"})
# What each one's paper rounds to first.
_STORED = "int4-weight-only"
_INTEGERS = "u?int.*"
# Scales of block formats are powers of two, and of nvfp4 fp8: nothing that a fit could move.
_FREE_SCALES = "(?!mx|nvfp4).*"
_HERE = "octavo.core.quantizing.algorithms"


@hookimpl
def octavo_algorithms() -> Iterable[Part[Any]]:
    """Offer the built-in weight algorithms."""
    return (
        Part(
            "rtn",
            f"{_HERE}.rtn:RoundToNearest",
            RtnConfig,
            "round to nearest, with or without a search for the range of least error",
        ),
        Part(
            "hqq",
            f"{_HERE}.hqq:Hqq",
            HqqConfig,
            "half-quadratic fit of zero points and scales; needs no data",
            format=_STORED,
            rounds=_FREE_SCALES,
        ),
        Part(
            "importance",
            f"{_HERE}.importance:Importance",
            ImportanceConfig,
            "scales of least error weighted by squared inputs or gradients, then round to nearest",
            format=_STORED,
        ),
        Part(
            "scale_estimation",
            f"{_HERE}.scale_estimation:ScaleEstimation",
            ScaleEstimationConfig,
            "scales by alternating least squares on the groups' outputs, then round to nearest",
            needs=_GRAM,
            format=_STORED,
            refines=True,
            rounds=_FREE_SCALES,
        ),
        Part(
            "awq",
            f"{_HERE}.awq:Awq",
            AwqConfig,
            "range of least output error, then round to nearest",
            needs=_GRAM,
            format=_STORED,
        ),
        Part(
            "gptq",
            f"{_HERE}.gptq:Gptq",
            GptqConfig,
            "column by column, later columns make up for the error",
            needs=_GRAM,
            format=_STORED,
            refines=True,
        ),
        Part(
            "gptaq",
            f"{_HERE}.gptaq:Gptaq",
            GptaqConfig,
            "gptq on the quantized model's inputs, making up for what these have lost",
            needs=frozenset({"paired_gram"}),
            format=_STORED,
            refines=True,
        ),
        Part(
            "autoround",
            f"{_HERE}.autoround:AutoRound",
            AutoRoundConfig,
            "signed gradient descent on rounding and range",
            needs=_GRAM,
            format=_STORED,
            refines=True,
            rounds=_INTEGERS,
        ),
        Part(
            "adaround",
            f"{_HERE}.adaround:AdaRound",
            AdaRoundConfig,
            "learned rounding up or down",
            needs=_GRAM,
            format=_STORED,
            refines=True,
            rounds=_INTEGERS,
        ),
        Part(
            "low_rank",
            f"{_HERE}.low_rank:LowRankRepair",
            LowRankRepairConfig,
            "thin factors beside the codes that take in their error (EoRA, LQER)",
            needs=_GRAM,
            format=_STORED,
            refines=True,
        ),
    )
