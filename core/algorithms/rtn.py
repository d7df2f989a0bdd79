"""Round to nearest."""

from __future__ import annotations

from array_api_compat import array_namespace

from ..numerics.affine import Array, QuantParams, affine_params, quantize
from ..numerics.tensor import QuantizedTensor, narrow
from ..scheme import QuantSpec
from .base import WeightAlgorithm, WeightContext


class RoundToNearest(WeightAlgorithm):
    """q = round(w / scale) on the weight's own [min, max]. Needs the weight alone; one pass over it."""

    def quantize(self, matrix: Array, spec: QuantSpec, context: WeightContext) -> QuantizedTensor:
        """Quantize per tensor or per channel."""
        xp = array_namespace(matrix)
        per_channel = spec.granularity == "channel"
        axes = 1 if per_channel else None
        params: QuantParams = affine_params(xp.min(matrix, axis=axes), xp.max(matrix, axis=axes), spec, 0 if per_channel else None)
        return QuantizedTensor(narrow(quantize(matrix, params), params), params)
