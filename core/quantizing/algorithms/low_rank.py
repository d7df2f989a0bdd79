"""Low-rank repair: a product of two thin matrices takes in most of what rounding did."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from array_api_compat import array_namespace
from pydantic import Field

from octavo.core.contract.algorithm import WeightAlgorithm, WeightConfig, WeightContext
from octavo.core.numerics.affine import Array
from octavo.core.numerics.codec import encode
from octavo.core.numerics.low_rank import least_error_factors, narrowed
from octavo.core.numerics.tensor import QuantizedTensor
from octavo.core.values.scheme import QuantSpec
from octavo.core.values.sizes import REPAIR_DTYPE, REPAIR_RANK

from .search import own_grid


class LowRankRepairConfig(WeightConfig):
    """Settings of the low-rank repair.

    Attributes:
        rank: Columns of the left factor and rows of the right one.
        dtype: Type of both factors.
        source: What says how much each direction of the inputs weighs: ``gram``, the Gram matrix
            (EoRA); ``diagonal``, each feature's own mean square (as L2QER has each feature's mean
            size); ``weights``, nothing: all weigh alike and no data is needed (LQER).
    """

    kind: Literal["low_rank"] = "low_rank"
    rank: int = Field(REPAIR_RANK, ge=1)
    dtype: Literal["float16", "bfloat16", "float32"] = REPAIR_DTYPE
    source: Literal["gram", "diagonal", "weights"] = "gram"

    def needs(self, card: frozenset[str]) -> frozenset[str]:
        """Return what the source is made of: weights alone need nothing of calibration."""
        of_source = {"gram": card, "diagonal": frozenset({"channel_square"})}
        return super().needs(of_source.get(self.source, frozenset()))


class LowRankRepair(WeightAlgorithm):
    """Keeps the codes and adds factors B, A for which tr((E - B A) G (E - B A)^T) is least.

    E = W - W_q. Papers: Zhang et al. 2024, "LQER", section 3.1 (``source = "weights"``) and L2QER,
    section 3.2 (``diagonal``); Liu et al. 2024, "EoRA", algorithm 1 (``gram``). See
    :func:`~octavo.core.numerics.low_rank.least_error_factors`.

    It goes on from the algorithm before it; alone, from rounding to nearest.
    """

    config: LowRankRepairConfig

    def quantize(
        self, matrix: Array, spec: QuantSpec, context: WeightContext
    ) -> QuantizedTensor:
        """Quantize to any dtype and granularity."""
        xp = array_namespace(matrix)
        gram = self._gram(context)
        weight = xp.astype(matrix, xp.float32)
        start = context.start
        if start is None:
            params, extra = own_grid(weight, spec, context)
            start = QuantizedTensor(encode(weight, params), params, extra)
        if 0 in matrix.shape:
            return start
        error = weight - start.dequantize()
        exact = least_error_factors(error, gram, self.config.rank)
        return replace(start, repair=narrowed(exact, self.config.dtype))

    def _gram(self, context: WeightContext) -> Array | None:
        """Return G, or its diagonal alone; None where all inputs weigh alike."""
        if self.config.source == "weights":
            return None
        if self.config.source == "gram":
            return context.require_gram("low_rank")
        square = context.channel_square
        if square is None:
            gram = context.require_gram("low_rank")
            square = array_namespace(gram).linalg.diagonal(gram)
        return square
