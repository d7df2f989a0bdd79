"""AWQ's clip search: the range of least output error."""

from __future__ import annotations

from typing import Literal

from ..numerics.affine import Array
from ..numerics.codec import encode
from ..numerics.tensor import QuantizedTensor
from ..scheme import QuantSpec
from .base import WeightAlgorithm, WeightConfig, WeightContext
from .search import gram_cost, searched_grid


class AwqConfig(WeightConfig):
    """Settings of AWQ's clip search; its scale search is the transform of the same name."""

    kind: Literal["awq"] = "awq"


class Awq(WeightAlgorithm):
    """Chooses for each scale the shrunk range whose rounded weights change the group's output least, then rounds to nearest.

    Paper: Lin et al. 2024, "AWQ: Activation-aware Weight Quantization", section 3 and its clip search:
    minimise ||(w - Q(w)) X_g||^2 = d G_g d^T over the range, for each group g of a row by itself.

    Needs the Gram matrix. Cost: 45 products rows x features x group.
    """

    def quantize(self, matrix: Array, spec: QuantSpec, context: WeightContext) -> QuantizedTensor:
        """Quantize to any dtype and granularity."""
        params, extra = searched_grid(matrix, spec, context, gram_cost(spec, context.require_gram("awq")))
        return QuantizedTensor(encode(matrix, params), params, extra)
