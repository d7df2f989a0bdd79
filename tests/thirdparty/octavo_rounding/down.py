"""Rounding down, after octavo's own choice of scales."""

from __future__ import annotations

from typing import Any

from array_api_compat import array_namespace

from octavo.plugin import (
    QuantizedTensor,
    QuantSpec,
    WeightAlgorithm,
    WeightContext,
    affine_params,
    quantize,
)


class RoundDown(WeightAlgorithm):
    """Codes of the next lower number: what is rounded is half a step less."""

    def quantize(
        self, matrix: Any, spec: QuantSpec, context: WeightContext
    ) -> QuantizedTensor:
        xp = array_namespace(matrix)
        by_row = spec.granularity == "channel"
        axis = 1 if by_row else None
        low, high = xp.min(matrix, axis=axis), xp.max(matrix, axis=axis)
        params = affine_params(low, high, spec, 0 if by_row else None)
        steps = params.scale[:, None] if by_row else params.scale
        codes = quantize(matrix - self.config.by * steps, params)
        return QuantizedTensor(xp.astype(codes, xp.int8), params)
