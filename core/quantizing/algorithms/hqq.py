"""HQQ: half-quadratic quantization."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from array_api_compat import array_namespace
from pydantic import Field

from octavo.core.contract.algorithm import WeightAlgorithm, WeightConfig, WeightContext
from octavo.core.numerics.affine import Array, QuantParams, integer_range, is_integer
from octavo.core.numerics.codec import encode, project
from octavo.core.numerics.layout import spread
from octavo.core.numerics.scales import rounded_scale
from octavo.core.numerics.tensor import QuantizedTensor
from octavo.core.values.scheme import QuantSpec

from .search import own_grid, power_cost, sum_by_scale


class HqqConfig(WeightConfig):
    """Settings of HQQ.

    Attributes:
        power: p of the lp norm of the error, below 1 so that few large errors are forgiven.
        beta: Weight of the quadratic term at the start.
        growth: By which it grows each iteration.
        iterations: This many; each scale keeps the best that it has met.
    """

    kind: Literal["hqq"] = "hqq"
    power: float = Field(0.7, gt=0, le=2)
    beta: float = Field(10.0, gt=0)
    growth: float = Field(1.01, gt=1)
    iterations: int = Field(20, ge=1)


class Hqq(WeightAlgorithm):
    """Minimises ||W - W_q||_p^p, p < 1, over scales, and over zero points where there are any.

    Source: Badri and Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models", eqs. 4 to 8: the error is
    split off by the generalised soft threshold E = sign(R) max(|R| - |R|**(p-1) / beta, 0), R = W - W_q, and the zero point
    becomes the mean of q - (W - E) / scale over those that share it. Runtimes take whole zero points, so the scale is
    fitted to W - E as well (least squares, by the rounded zero point), and each scale keeps the best it has met.

    Needs the weight alone. Cost: about 20 passes over it per iteration.
    """

    config: HqqConfig

    def quantize(self, matrix: Array, spec: QuantSpec, context: WeightContext) -> QuantizedTensor:
        """Quantize to any dtype and granularity."""
        xp = array_namespace(matrix)
        params, extra = own_grid(matrix, spec, context)
        if (
            context.params is None
            and 0 not in matrix.shape
            and spec.dtype not in ("float16", "bfloat16")
        ):
            # Two-level scales are rounded again in the end; a power of two stays one.
            params, extra = rounded_scale(self._fit(xp.astype(matrix, xp.float32), params))
        return QuantizedTensor(encode(matrix, params), params, extra)

    def _fit(self, weight: Array, params: QuantParams) -> QuantParams:
        xp = array_namespace(weight)
        spec, power, beta = params.spec, self.config.power, self.config.beta
        if spec.dtype.startswith("mx"):
            return params  # its scales are powers of two, which least squares cannot move
        asymmetric = is_integer(spec) and not spec.symmetric
        low, high = integer_range(spec) if asymmetric else (0, 0)
        scale, zero = params.scale, xp.astype(params.zero_point, xp.float32)
        counts = sum_by_scale(xp.ones_like(weight), spec)
        cost = power_cost(spec, power)
        best, best_error = params, cost(weight, project(weight, params))

        def over(function: Callable[..., Array], *parameters: Array) -> Array:
            return spread(function, weight, spec, params.axis, *parameters)

        for _ in range(self.config.iterations):
            if asymmetric:
                codes = over(lambda w, s, z: xp.clip(xp.round(w / s + z), low, high), scale, zero)
                target = self._target(weight, _affine(codes, scale, zero, params), beta)
                zero = xp.clip(
                    sum_by_scale(
                        codes - _affine(target, 1 / scale, xp.zeros_like(zero), params), spec
                    )
                    / counts,
                    low,
                    high,
                )
                whole = xp.round(zero)
                units = _affine(codes, xp.ones_like(scale), whole, params)
            else:
                whole = zero
                units = _affine(
                    project(weight, QuantParams(scale, params.zero_point, spec, params.axis)),
                    1 / scale,
                    0 * zero,
                    params,
                )
                target = self._target(weight, _affine(units, scale, 0 * zero, params), beta)
            energy = sum_by_scale(units * units, spec)
            fitted = sum_by_scale(target * units, spec) / xp.where(
                energy > 0, energy, xp.ones_like(energy)
            )
            scale = xp.where(fitted > 0, fitted, scale)
            tried = QuantParams(scale, xp.astype(whole, xp.int32), spec, params.axis)
            error = cost(weight, project(weight, tried))
            better = error < best_error
            best_error = xp.where(better, error, best_error)
            best = QuantParams(
                xp.where(better, scale, best.scale),
                xp.where(better, tried.zero_point, best.zero_point),
                spec,
                params.axis,
            )
            beta *= self.config.growth
        return best

    def _target(self, weight: Array, projected: Array, beta: float) -> Array:
        """Return W - E, with E the generalised soft threshold of the error."""
        xp = array_namespace(weight)
        error = weight - projected
        size = xp.maximum(xp.abs(error), xp.full_like(error, 1e-8))
        return weight - xp.sign(error) * xp.maximum(
            size - size ** (self.config.power - 1) / beta, xp.zeros_like(size)
        )


def _affine(x: Array, scale: Array, zero: Array, params: QuantParams) -> Array:
    return spread(lambda v, s, z: s * (v - z), x, params.spec, params.axis, scale, zero)
