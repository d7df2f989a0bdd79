"""Built-in calibrators: observed activations -> a range.

A plugin module, as a third party would write one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from octavo.core.contract.hookspecs import hookimpl
from octavo.core.contract.parts import Part

from .average import MovingAverageConfig
from .entropy import EntropyConfig
from .histogram import (
    HistogramConfig,
    MseConfig,
    OutlierFreeConfig,
    PercentileConfig,
)
from .minmax import MinMaxConfig
from .tokens import TokenConfig

_HERE = "octavo.core.calibration.calibrators"


@hookimpl
def octavo_calibrators() -> Iterable[Part[Any]]:
    """Offer the built-in calibrators."""
    return (
        Part(
            "minmax",
            f"{_HERE}.minmax:MinMax",
            MinMaxConfig,
            "smallest and largest value seen",
        ),
        Part(
            "moving_average",
            f"{_HERE}.average:MovingAverage",
            MovingAverageConfig,
            "moving average of each batch's extremes",
        ),
        Part(
            "histogram",
            f"{_HERE}.histogram:L2Histogram",
            HistogramConfig,
            "range of least squared error, each end by itself",
        ),
        Part(
            "mse",
            f"{_HERE}.histogram:MeanSquaredError",
            MseConfig,
            "shrunk range of least squared error",
        ),
        Part(
            "entropy",
            f"{_HERE}.entropy:Entropy",
            EntropyConfig,
            "range of least Kullback-Leibler divergence",
        ),
        Part(
            "percentile",
            f"{_HERE}.histogram:Percentile",
            PercentileConfig,
            "range of most values",
        ),
        Part(
            "outlier_free",
            f"{_HERE}.histogram:OutlierFree",
            OutlierFreeConfig,
            "range without outliers by Tukey's rule",
        ),
        Part(
            "token",
            f"{_HERE}.tokens:TokenQuantile",
            TokenConfig,
            "quantile over tokens of each token's extremes, of least output error",
        ),
    )
