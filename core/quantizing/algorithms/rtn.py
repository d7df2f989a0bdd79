"""Round to nearest."""

from __future__ import annotations

from typing import Literal

from octavo.core.contract.algorithm import WeightAlgorithm, WeightConfig, WeightContext
from octavo.core.errors import SchemeError
from octavo.core.numerics.affine import Array, Convention, is_integer
from octavo.core.numerics.blocked import round_blocked, takes
from octavo.core.numerics.codec import choose_params, encode
from octavo.core.numerics.ranges import ranges
from octavo.core.numerics.rounding import nearest, stochastic
from octavo.core.numerics.tensor import QuantizedTensor
from octavo.core.values.scheme import QuantSpec

from .search import Grid, channel_axis, power_cost, searched_grid


class RtnConfig(WeightConfig):
    """Settings of round to nearest.

    Attributes:
        clip: ``mse`` searches, for each scale, the shrunk range of least error; ``none`` takes the
            whole range.
        power: Of the error, in the search. 2.4 weighs outliers a little more than the square
            (GPTQ's reference code).
        convention: How a range becomes an integer scale; see
            :func:`octavo.core.numerics.affine.affine_params`.
        rounding: ``stochastic`` rounds integers up with the probability of their fraction, so that
            the mean error is zero.
        seed: Of its draws.
    """

    kind: Literal["rtn"] = "rtn"
    clip: Literal["none", "mse"] = "none"
    power: float = 2.0
    convention: Convention = "octavo"
    rounding: Literal["nearest", "stochastic"] = "nearest"
    seed: int = 0


class RoundToNearest(WeightAlgorithm):
    """q = round(w / scale) + zero_point on the weight's own range, or a shrunk one of least error.

    Needs the weight alone. Cost: one pass over it; 45 with the clip search.
    """

    config: RtnConfig

    def quantize(
        self, matrix: Array, spec: QuantSpec, context: WeightContext
    ) -> QuantizedTensor:
        """Quantize to any dtype and granularity."""
        is_stochastic = self.config.rounding == "stochastic"
        if is_stochastic and not is_integer(spec):
            raise SchemeError(
                f"stochastic rounding is for integers; round {spec.dtype} to nearest"
            )
        rounding = stochastic(self.config.seed) if is_stochastic else nearest
        if context.params is not None:
            return QuantizedTensor(
                encode(matrix, context.params, rounding), context.params
            )
        is_plain = self.config.clip == "none" and self.config.convention == "octavo"
        # The same numbers, at the speed of memory.
        if is_plain and not is_stochastic and takes(matrix, spec):
            return QuantizedTensor(*round_blocked(matrix, spec))
        params, extra = self._grid(matrix, spec, context)
        return QuantizedTensor(encode(matrix, params, rounding), params, extra)

    def _grid(self, matrix: Array, spec: QuantSpec, context: WeightContext) -> Grid:
        if self.config.clip == "mse":
            cost = power_cost(spec, self.config.power)
            return searched_grid(matrix, spec, context, cost)
        low, high = ranges(matrix, spec)
        return choose_params(
            low, high, spec, channel_axis(spec), self.config.convention
        )
