"""Round to nearest."""

from __future__ import annotations

from ..numerics.affine import Array
from ..numerics.codec import choose, encode
from ..numerics.ranges import ranges
from ..numerics.tensor import QuantizedTensor
from ..scheme import QuantSpec
from .base import WeightAlgorithm, WeightContext


class RoundToNearest(WeightAlgorithm):
    """q = round(w / scale) on the weight's own [min, max]. Needs the weight alone; one pass over it."""

    def quantize(self, matrix: Array, spec: QuantSpec, context: WeightContext) -> QuantizedTensor:
        """Quantize to any dtype and granularity."""
        params, extra = (
            (context.params, None) if context.params else choose(*ranges(matrix, spec), spec, None if spec.granularity == "tensor" else 0)
        )
        return QuantizedTensor(encode(matrix, params), params, extra)
