"""Round to nearest."""

from __future__ import annotations

from typing import Literal

from ..numerics.affine import Array, Convention
from ..numerics.blocked import round_blocked, takes
from ..numerics.codec import choose, encode
from ..numerics.ranges import ranges
from ..numerics.tensor import QuantizedTensor
from ..scheme import QuantSpec
from .base import WeightAlgorithm, WeightConfig, WeightContext
from .search import power_cost, searched_grid


class RtnConfig(WeightConfig):
    """Settings of round to nearest.

    Attributes:
        clip: ``mse`` searches, for each scale, the shrunk range of least error; ``none`` takes the whole range.
        power: Of the error, in the search. 2.4 weighs outliers a little more than the square (GPTQ's reference code).
        convention: How a range becomes an integer scale; see :func:`octavo.core.numerics.affine.affine_params`.
    """

    kind: Literal["rtn"] = "rtn"
    clip: Literal["none", "mse"] = "none"
    power: float = 2.0
    convention: Convention = "octavo"


class RoundToNearest(WeightAlgorithm):
    """q = round(w / scale) + zero_point on the weight's own [min, max], or on the shrunk range of least error.

    Needs the weight alone. Cost: one pass over it; 45 with the clip search.
    """

    config: RtnConfig

    def quantize(self, matrix: Array, spec: QuantSpec, context: WeightContext) -> QuantizedTensor:
        """Quantize to any dtype and granularity."""
        if context.params is not None:
            return QuantizedTensor(encode(matrix, context.params), context.params)
        if self.config.clip == "none" and self.config.convention == "octavo" and takes(matrix, spec):
            codes, params = round_blocked(matrix, spec)
            return QuantizedTensor(codes, params)
        if self.config.clip == "mse":
            params, extra = searched_grid(matrix, spec, context, power_cost(spec, self.config.power))
        else:
            axis = None if spec.granularity == "tensor" else 0
            params, extra = choose(*ranges(matrix, spec), spec, axis, self.config.convention)
        return QuantizedTensor(encode(matrix, params), params, extra)
