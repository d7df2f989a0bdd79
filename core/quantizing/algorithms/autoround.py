"""AutoRound: signed gradient descent on rounding and clipping."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from array_api_compat import array_namespace
from pydantic import Field

from octavo.core.contract.algorithm import WeightAlgorithm, WeightConfig, WeightContext
from octavo.core.errors import SchemeError
from octavo.core.numerics.affine import (
    Array,
    QuantParams,
    affine_params,
    integer_range,
    is_integer,
    narrow,
)
from octavo.core.numerics.layout import spread
from octavo.core.numerics.scales import has_movable_scales, rounded_scale
from octavo.core.numerics.tensor import QuantizedTensor
from octavo.core.values.scheme import QuantSpec
from octavo.core.values.sizes import is_grouped

from .learned import best_rows, normalised, output_error, unshrunk
from .output_grid import output_grid
from .search import sum_by_scale


class AutoRoundConfig(WeightConfig):
    """Settings of AutoRound.

    Attributes:
        iterations: Steps of signed gradient descent.
        step: Step size at the start, falling linearly to zero; None for 1 / iterations, as in the
            paper.
    """

    kind: Literal["autoround"] = "autoround"
    iterations: int = Field(200, ge=1)
    step: float | None = Field(None, gt=0)


class AutoRound(WeightAlgorithm):
    """Learns V in [-0.5, 0.5], added before rounding, and the shares of both range ends to keep.

    Paper: Cheng et al. 2024, "Optimize Weight Rounding via Signed Gradient Descent for the
    Quantization of LLMs", eqs. 3 to 6: W_q = s clip(round(W / s + z + V), qmin, qmax) - s z,
    s = (max a - min b) / (qmax - qmin), with straight-through gradients and the step
    V -= lr sign(dL/dV). Here layer by layer: L = tr((W_q - W) G (W_q - W)^T) has the gradient
    2 (W_q - W) G, so a Gram matrix takes the place of inputs and autograd. Each row keeps the best
    state it has met, its scales grown by what its outputs have shrunk (:func:`.learned.unshrunk`).

    After another algorithm (``gptq``, ``awq``) it begins with that one's codes, on that one's grid,
    and each row that it does not better stays as it was.

    Needs the Gram matrix; integer dtypes. Cost: one product rows x features x features per
    iteration.
    """

    config: AutoRoundConfig

    def quantize(
        self, matrix: Array, spec: QuantSpec, context: WeightContext
    ) -> QuantizedTensor:
        """Quantize per channel or per group; per tensor with the rounding alone."""
        _check(spec)
        xp = array_namespace(matrix)
        weight = xp.astype(matrix, xp.float32)
        gram = normalised(context.require_gram("autoround"))
        start, extra = output_grid(weight, spec, context, gram)
        if 0 in matrix.shape:
            return QuantizedTensor(
                narrow(xp.astype(weight, xp.int32), spec), start, extra
            )
        is_free = context.params is None and has_movable_scales(spec)
        learn_range = is_free and spec.granularity != "tensor"
        begun = _offset_to(context.start, weight)
        best = self._descend(weight, gram, start, learn_range, begun)
        params = QuantParams(best.scale, best.zero_point, spec, start.axis)
        if learn_range:
            # Rows have their scales from different steps: over one second level, together.
            params, extra = rounded_scale(params)
        found = QuantizedTensor(narrow(best.codes, spec), params, extra)
        if context.start is None:
            return unshrunk(found, weight, context)
        return best_rows(found, context.start, weight, gram)

    def _descend(
        self,
        weight: Array,
        gram: Array,
        start: QuantParams,
        learn_range: bool,
        begun: Array,
    ) -> _Best:
        xp = array_namespace(weight)
        offset = begun
        nothing = xp.zeros_like(begun)
        lowest = xp.minimum(begun, nothing) - 0.5
        highest = xp.maximum(begun, nothing) + 0.5
        shares = _Shares(xp.ones_like(start.scale), xp.ones_like(start.scale))
        rate = self.config.step or 1.0 / self.config.iterations
        params = start
        best: _Best | None = None
        for i in range(self.config.iterations + 1):
            rounded = _Rounded.of(weight, offset, params)
            projected = rounded.units * _over(params.scale, weight, params)
            loss, slope = output_error(projected - weight, gram)
            if best is None:
                best = _Best(loss, rounded.codes, params.scale, params.zero_point)
            else:
                best.take(loss, rounded.codes, params if learn_range else None)
            step = rate * (1 - i / self.config.iterations)
            moved = offset - step * xp.sign(slope)
            offset = xp.minimum(xp.maximum(moved, lowest), highest)
            if learn_range:
                shares = shares.stepped(rounded.slopes(slope, params), start, step)
                params, _ = rounded_scale(shares.of_range(start))
        assert best is not None
        return best


def _check(spec: QuantSpec) -> None:
    if not is_integer(spec):
        raise SchemeError(
            f"autoround learns the rounding of integers; for {spec.dtype} use gptq, awq or rtn"
        )
    if spec.granularity.startswith("block:"):
        raise SchemeError(
            "autoround keeps each row's best state and cannot share a scale over rows "
            f"({spec}); use group or channel granularity"
        )


@dataclass(slots=True, eq=False)
class _Best:
    """The best state that each row has met.

    Attributes:
        loss: Of each row.
        codes: int32, without a zero point taken off.
        scale: In the shape of the scales.
        zero_point: Likewise.
    """

    loss: Array
    codes: Array
    scale: Array
    zero_point: Array

    def take(self, loss: Array, codes: Array, params: QuantParams | None) -> None:
        """Keep a state in the rows where it is better; no parameters where they do not change."""
        xp = array_namespace(loss)
        better = loss < self.loss
        self.loss = xp.where(better, loss, self.loss)
        self.codes = xp.where(better[:, None], codes, self.codes)
        if params is not None:
            row = better[:, None] if is_grouped(params.spec) else better
            self.scale = xp.where(row, params.scale, self.scale)
            self.zero_point = xp.where(row, params.zero_point, self.zero_point)


@dataclass(frozen=True, slots=True, eq=False)
class _Rounded:
    """A weight after rounding.

    Attributes:
        codes: int32.
        units: Codes less the zero point, float32.
        slope_of_scale: d W_q / d scale with straight-through rounding.
        is_cut: 1 where a code is cut to the range, else 0; float32.
    """

    codes: Array
    units: Array
    slope_of_scale: Array
    is_cut: Array

    @classmethod
    def of(cls, weight: Array, offset: Array, params: QuantParams) -> _Rounded:
        """Round a weight with an offset added first."""
        xp = array_namespace(weight)
        qmin, qmax = integer_range(params.spec)
        ratio = spread(
            lambda w, s: w / s, weight, params.spec, params.axis, params.scale
        )
        zero = _over(xp.astype(params.zero_point, xp.float32), weight, params)
        raw = xp.round(ratio + offset) + zero
        codes = xp.clip(raw, qmin, qmax)
        units = codes - zero
        # Where a code is cut, a larger scale moves the number by whole units.
        through = xp.where(raw == codes, ratio, xp.zeros_like(ratio))
        is_cut = xp.astype(raw != codes, xp.float32)
        return cls(xp.astype(codes, xp.int32), units, units - through, is_cut)

    def slopes(self, slope: Array, params: QuantParams) -> _Slopes:
        """Return the loss's slopes along the grid, from those along the numbers."""
        spec = params.spec
        of_scale = sum_by_scale(slope * self.slope_of_scale, spec)
        if spec.symmetric:
            return _Slopes(of_scale, 0 * of_scale, params)
        # A code that is cut stays where it is when the zero point moves: its number moves back.
        of_zero = -params.scale * sum_by_scale(slope * self.is_cut, spec)
        return _Slopes(of_scale, of_zero, params)


@dataclass(frozen=True, slots=True, eq=False)
class _Slopes:
    """The loss's slopes along a grid, for each scale.

    Attributes:
        of_scale: Along the scale.
        of_zero: Along the zero point.
        params: The grid.
    """

    of_scale: Array
    of_zero: Array
    params: QuantParams


@dataclass(frozen=True, slots=True, eq=False)
class _Shares:
    """How much of a range is kept, for each scale.

    Attributes:
        low: Of the lower end.
        high: Of the upper end.
    """

    low: Array
    high: Array

    def stepped(self, slopes: _Slopes, start: QuantParams, step: float) -> _Shares:
        """Return the shares after a step against the sign of their gradients.

        With s = (high share * high - low share * low) / steps and
        z = qmin - low share * low / s, rounded straight through.

        Args:
            slopes: Of the loss, along the grid over these shares.
            start: The whole range.
            step: Size of the step.
        """
        xp = array_namespace(slopes.of_scale)
        low, high = _ends(start)
        scale = slopes.params.scale
        zero_by_scale = low * self.low / (scale * scale)
        slope = slopes.of_scale + slopes.of_zero * zero_by_scale
        qmin, qmax = integer_range(start.spec)
        of_high = slope * high
        of_low = -low * (slope + slopes.of_zero * (qmax - qmin) / scale)
        return _Shares(
            xp.clip(self.low - step * xp.sign(of_low), 0.5, 1.25),
            xp.clip(self.high - step * xp.sign(of_high), 0.5, 1.25),
        )

    def of_range(self, start: QuantParams) -> QuantParams:
        """Return the grid over the kept shares of the range."""
        if start.spec.symmetric:
            return replace(start, scale=start.scale * self.high)
        low, high = _ends(start)
        return affine_params(low * self.low, high * self.high, start.spec, start.axis)


_INSIDE = 0.25
"""How far inside a start's code a weight is put that lies in another one: half as far as the steps
reach, so that the descent can keep the code or take it back."""


def _offset_to(start: QuantizedTensor | None, weight: Array) -> Array:
    """Return the offsets with which a weight is rounded to a start's codes; zeros without a start.

    Codes that are the nearest need none. The descent goes on from there.
    """
    xp = array_namespace(weight)
    if start is None:
        return xp.zeros_like(weight)
    params = start.params
    zero = _over(xp.astype(params.zero_point, xp.float32), weight, params)
    ratio = weight / _over(params.scale, weight, params)
    steps = xp.astype(start.codes, xp.float32) - zero
    # Not cut to the range: what is far outside of it stays where the start put it, too.
    apart = steps - xp.round(ratio)
    return xp.where(apart == 0, 0 * ratio, steps - xp.sign(apart) * _INSIDE - ratio)


def _over(parameter: Array, x: Array, params: QuantParams) -> Array:
    """Return a parameter spread over the elements that share it."""
    return spread(lambda v, p: p + 0 * v, x, params.spec, params.axis, parameter)


def _ends(start: QuantParams) -> tuple[Array, Array]:
    """Return the range that the integers fill."""
    xp = array_namespace(start.scale)
    qmin, qmax = integer_range(start.spec)
    zero = xp.astype(start.zero_point, xp.float32)
    return start.scale * (qmin - zero), start.scale * (qmax - zero)
