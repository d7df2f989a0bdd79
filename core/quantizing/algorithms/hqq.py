"""HQQ: half-quadratic quantization."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from array_api_compat import array_namespace
from pydantic import Field

from octavo.core.contract.algorithm import WeightAlgorithm, WeightConfig, WeightContext
from octavo.core.numerics.affine import Array, QuantParams, integer_range, is_integer
from octavo.core.numerics.codec import encode, project
from octavo.core.numerics.layout import spread
from octavo.core.numerics.scales import HALVES, rounded_scale
from octavo.core.numerics.tensor import QuantizedTensor
from octavo.core.values.scheme import QuantSpec

from .least_squares import chosen
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

    Source: Badri and Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models",
    eqs. 4 to 8: the error is split off by the generalised soft threshold
    E = sign(R) max(|R| - |R|**(p-1) / beta, 0), R = W - W_q, and the zero point becomes the mean of
    q - (W - E) / scale over those that share it. Runtimes take whole zero points, so the scale is
    fitted to W - E as well (least squares, by the rounded zero point), and each scale keeps the
    best it has met.

    Needs the weight alone. Cost: about 20 passes over it per iteration.
    """

    config: HqqConfig

    def quantize(
        self, matrix: Array, spec: QuantSpec, context: WeightContext
    ) -> QuantizedTensor:
        """Quantize to any dtype and granularity."""
        xp = array_namespace(matrix)
        params, extra = own_grid(matrix, spec, context)
        is_free = context.params is None and spec.dtype not in HALVES
        if is_free and 0 not in matrix.shape:
            fitted = self._fit(xp.astype(matrix, xp.float32), params)
            # Two-level scales are rounded again in the end; a power of two stays one.
            params, extra = rounded_scale(fitted)
        return QuantizedTensor(encode(matrix, params), params, extra)

    def _fit(self, weight: Array, params: QuantParams) -> QuantParams:
        xp = array_namespace(weight)
        spec = params.spec
        # Scales of mx dtypes are powers of two, which least squares cannot move.
        if spec.dtype.startswith("mx"):
            return params
        cost = power_cost(spec, self.config.power)
        best = params
        best_error = cost(weight, project(weight, params))
        counts = sum_by_scale(xp.ones_like(weight), spec)
        given = _Given(weight, params, counts)
        state = _State(params.scale, xp.astype(params.zero_point, xp.float32))
        moves_zero = is_integer(spec) and not spec.symmetric
        turn = self._asymmetric_turn if moves_zero else self._symmetric_turn
        beta = self.config.beta
        for _ in range(self.config.iterations):
            state, tried = turn(given, state, beta)
            if spec.scale_dtype in HALVES:
                tried, _ = rounded_scale(tried)
            error = cost(weight, project(weight, tried))
            better = error < best_error
            best_error = xp.where(better, error, best_error)
            best = chosen(better, tried, best)
            beta *= self.config.growth
        return best

    def _asymmetric_turn(
        self, given: _Given, state: _State, beta: float
    ) -> tuple[_State, QuantParams]:
        """Move the zero point, then fit the scale."""
        weight = given.weight
        params = given.params
        xp = array_namespace(weight)
        spec = params.spec
        low, high = integer_range(spec)
        scale = state.scale
        zero = state.zero

        def codes_of(w: Array, s: Array, z: Array) -> Array:
            whole = xp.round(w / s + z)
            return xp.clip(whole, low, high)

        codes = spread(codes_of, weight, spec, params.axis, scale, zero)
        projected = _affine(codes, scale, zero, params)
        target = self._target(weight, projected, beta)
        wanted_units = _affine(target, 1 / scale, xp.zeros_like(zero), params)
        offsets = sum_by_scale(codes - wanted_units, spec)
        mean = offsets / given.counts
        zero = xp.clip(mean, low, high)
        whole = xp.round(zero)
        units = _affine(codes, xp.ones_like(scale), whole, params)
        scale = _fitted(scale, target, units, spec)
        tried = replace(params, scale=scale, zero_point=xp.astype(whole, xp.int32))
        return _State(scale, zero), tried

    def _symmetric_turn(
        self, given: _Given, state: _State, beta: float
    ) -> tuple[_State, QuantParams]:
        """Fit the scale alone."""
        weight = given.weight
        params = given.params
        scale = state.scale
        no_zero = 0 * state.zero
        on_grid = project(weight, replace(params, scale=scale))
        units = _affine(on_grid, 1 / scale, no_zero, params)
        projected = _affine(units, scale, no_zero, params)
        target = self._target(weight, projected, beta)
        fitted = _fitted(scale, target, units, params.spec)
        return _State(fitted, state.zero), replace(params, scale=fitted)

    def _target(self, weight: Array, projected: Array, beta: float) -> Array:
        """Return W - E, with E the generalised soft threshold of the error."""
        xp = array_namespace(weight)
        error = weight - projected
        # A negative power of zero is infinite.
        least = xp.full_like(error, 1e-8)
        size = xp.maximum(xp.abs(error), least)
        threshold = size ** (self.config.power - 1) / beta
        beyond = xp.maximum(size - threshold, xp.zeros_like(size))
        return weight - xp.sign(error) * beyond


@dataclass(frozen=True, slots=True, eq=False)
class _Given:
    """What is fitted.

    Attributes:
        weight: float32.
        params: Where the iteration starts.
        counts: How many elements share each scale.
    """

    weight: Array
    params: QuantParams
    counts: Array


@dataclass(frozen=True, slots=True, eq=False)
class _State:
    """Where the iteration stands.

    Attributes:
        scale: As last fitted.
        zero: The zero point before it is rounded, float32.
    """

    scale: Array
    zero: Array


def _fitted(scale: Array, target: Array, units: Array, spec: QuantSpec) -> Array:
    """Return the scales of least squares of target - scale * units; the old ones where none fit."""
    xp = array_namespace(scale)
    energy = sum_by_scale(units * units, spec)
    energy = xp.where(energy > 0, energy, xp.ones_like(energy))
    fitted = sum_by_scale(target * units, spec) / energy
    return xp.where(fitted > 0, fitted, scale)


def _affine(x: Array, scale: Array, zero: Array, params: QuantParams) -> Array:
    """Return scale * (x - zero), each parameter spread over the elements that share it."""

    def of_each(v: Array, s: Array, z: Array) -> Array:
        return s * (v - z)

    return spread(of_each, x, params.spec, params.axis, scale, zero)
