"""Round to nearest."""

from __future__ import annotations

from ..numerics.affine import Array, affine_params, quantize
from ..numerics.ranges import ranges
from ..numerics.tensor import QuantizedTensor, narrow
from ..scheme import QuantSpec
from .base import WeightAlgorithm, WeightContext


class RoundToNearest(WeightAlgorithm):
    """q = round(w / scale) on the weight's own [min, max]. Needs the weight alone; one pass over it."""

    def quantize(self, matrix: Array, spec: QuantSpec, context: WeightContext) -> QuantizedTensor:
        """Quantize per tensor, channel, group or block."""
        params = affine_params(*ranges(matrix, spec), spec, None if spec.granularity == "tensor" else 0)
        return QuantizedTensor(narrow(quantize(matrix, params), params), params)
