"""AdaRound: learn for each weight whether to round up or down."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from array_api_compat import array_namespace
from pydantic import Field

from octavo.core.contract.algorithm import WeightAlgorithm, WeightConfig, WeightContext
from octavo.core.errors import SchemeError
from octavo.core.numerics.affine import (
    Array,
    QuantParams,
    integer_range,
    is_integer,
    narrow,
)
from octavo.core.numerics.layout import spread
from octavo.core.numerics.tensor import QuantizedTensor
from octavo.core.values.scheme import QuantSpec

from .learned import best_rows, normalised, output_error, unshrunk
from .output_grid import output_grid

_LOWEST, _HIGHEST = -0.1, 1.1
"""zeta and gamma of the rectified sigmoid (eq. 23)."""

_SPAN = _HIGHEST - _LOWEST


class AdaRoundConfig(WeightConfig):
    """Settings of AdaRound.

    Attributes:
        iterations: Steps of Adam.
        step: Its step size.
        regularization: Weight of the term that drives every rounding to a decision, against the
            mean output error.
        warm_up: Share of the iterations before that term sets in.
    """

    kind: Literal["adaround"] = "adaround"
    iterations: int = Field(400, ge=1)
    step: float = Field(0.02, gt=0)
    regularization: float = Field(0.01, ge=0)
    warm_up: float = Field(0.2, ge=0, lt=1)


class AdaRound(WeightAlgorithm):
    """Minimises the output error over h(V) in [0, 1], and rounds up where h(V) >= 0.5.

    W_q = s clip(floor(W / s) + h(V) + z). Paper: Nagel et al. 2020, "Up or Down? Adaptive Rounding
    for Post-Training Quantization", eqs. 21 to 24: h(V) = clip(1.2 sigmoid(V) - 0.1, 0, 1),
    regularised by 1 - |2 h(V) - 1|**b with b falling from 20 to 2, solved by Adam. On a Gram matrix
    L = tr((W_q - W) G (W_q - W)^T) has a gradient in closed form, so no autograd is needed. A row
    whose decided rounding is worse than rounding to nearest keeps the latter; then its scales grow
    by what its outputs have shrunk (:func:`.learned.unshrunk`).

    Needs the Gram matrix; integer dtypes. Cost: one product rows x features x features per
    iteration.
    """

    config: AdaRoundConfig

    def quantize(
        self, matrix: Array, spec: QuantSpec, context: WeightContext
    ) -> QuantizedTensor:
        """Quantize per tensor, channel, group or block."""
        if not is_integer(spec):
            raise SchemeError(
                f"adaround learns the rounding of integers; for {spec.dtype} use gptq, awq or rtn"
            )
        xp = array_namespace(matrix)
        weight = xp.astype(matrix, xp.float32)
        gram = normalised(context.require_gram("adaround"))
        params, extra = output_grid(weight, spec, context, gram)
        if 0 in matrix.shape:
            codes = xp.astype(weight, xp.int32)
        else:
            codes = self._learn(_Grid.under(weight, params), gram)
        found = QuantizedTensor(narrow(codes, spec), params, extra)
        if context.start is not None:
            return best_rows(found, context.start, weight, gram)
        return unshrunk(found, weight, context)

    def _learn(self, grid: _Grid, gram: Array) -> Array:
        """Return codes, int32."""
        xp = array_namespace(gram)
        v = self._descend(grid, gram)
        up = xp.astype(v >= 0, xp.float32)
        learned = grid.clipped(grid.floor + up + grid.zero)
        whole = xp.round(grid.weight / grid.scale)
        nearest = grid.clipped(whole + grid.zero)
        mine, _ = output_error(grid.error(learned), gram)
        plain, _ = output_error(grid.error(nearest), gram)
        better = mine < plain
        codes = xp.where(better[:, None], learned, nearest)
        return xp.astype(codes, xp.int32)

    def _descend(self, grid: _Grid, gram: Array) -> Array:
        """Return V after all steps of Adam."""
        xp = array_namespace(gram)
        v = grid.start()
        # The output error counts in squared steps of the grid, so that its balance with the
        # regulariser is the same for any weight.
        unit = 1 / xp.mean(grid.scale * grid.scale)
        adam = _Adam(self.config.step, xp.zeros_like(v), xp.zeros_like(v))
        for i in range(self.config.iterations):
            sigmoid = 1 / (1 + xp.exp(-v))
            h = xp.clip(sigmoid * _SPAN + _LOWEST, 0.0, 1.0)
            code = grid.floor + h + grid.zero
            error = grid.error(grid.clipped(code))
            _, slope = output_error(error, gram)
            zeros = xp.zeros_like(slope)
            # Where h or the code is clipped, nothing changes with V.
            unclipped_slope = 2 * unit * grid.scale * slope
            slope_of_loss = xp.where(grid.holds(code), unclipped_slope, zeros)
            moves = (h > 0) & (h < 1)
            slope_of_sigmoid = _SPAN * sigmoid * (1 - sigmoid)
            slope_of_h = xp.where(moves, slope_of_sigmoid, zeros)
            slope_of_both = slope_of_loss + self._decisiveness(h, i)
            gradient = slope_of_both * slope_of_h
            v = v - adam.step_along(gradient, i)
        return v

    def _decisiveness(self, h: Array, i: int) -> Array:
        """Return the gradient of regularization * (1 - |2h - 1|**b)."""
        xp = array_namespace(h)
        start = self.config.warm_up * self.config.iterations
        if i < start:
            return xp.zeros_like(h)
        remaining = max(1.0, self.config.iterations - start)
        progress = (i - start) / remaining
        b = 2 + 18 * (1 - progress)
        distance = 2 * h - 1
        steepness = xp.abs(distance) ** (b - 1)
        return -self.config.regularization * 2 * b * xp.sign(distance) * steepness


@dataclass(frozen=True, slots=True, eq=False)
class _Grid:
    """A weight on its grid, all float32 of the weight's shape.

    Attributes:
        weight: The weight.
        scale: Spread over the elements that share it.
        zero: The zero point, likewise.
        floor: The step below each element, without the zero point.
        low: The smallest code.
        high: The largest.
    """

    weight: Array
    scale: Array
    zero: Array
    floor: Array
    low: int
    high: int

    @classmethod
    def under(cls, weight: Array, params: QuantParams) -> _Grid:
        """Return a weight on the grid of parameters."""
        xp = array_namespace(weight)

        def over_weight(parameter: Array) -> Array:
            given = xp.astype(parameter, xp.float32)
            return spread(_of_each, weight, params.spec, params.axis, given)

        scale = over_weight(params.scale)
        zero = over_weight(params.zero_point)
        floor = xp.floor(weight / scale)
        low, high = integer_range(params.spec)
        return cls(weight, scale, zero, floor, low, high)

    def start(self) -> Array:
        """Return the V whose h(V) is the weight's own fraction."""
        xp = array_namespace(self.weight)
        fraction = self.weight / self.scale - self.floor
        inside = xp.clip(fraction, 0.001, 0.999)
        return -xp.log(_SPAN / (inside - _LOWEST) - 1)

    def clipped(self, code: Array) -> Array:
        """Return codes within the range."""
        xp = array_namespace(code)
        return xp.clip(code, self.low, self.high)

    def holds(self, code: Array) -> Array:
        """Return where codes are within the range."""
        return (code >= self.low) & (code <= self.high)

    def error(self, code: Array) -> Array:
        """Return W_q - W of codes."""
        return self.scale * (code - self.zero) - self.weight


def _of_each(values: Array, parameter: Array) -> Array:
    """Return a parameter in the shape of the values that share it."""
    return parameter + 0 * values


@dataclass(slots=True, eq=False)
class _Adam:
    """Kingma and Ba 2015, with the paper's decay rates.

    Attributes:
        rate: Step size.
        first: Running mean of gradients.
        second: Running mean of their squares.
    """

    rate: float
    first: Array
    second: Array

    def step_along(self, gradient: Array, i: int) -> Array:
        """Return what the i-th step, counted from 0, takes off."""
        xp = array_namespace(gradient)
        self.first = 0.9 * self.first + 0.1 * gradient
        self.second = 0.999 * self.second + 0.001 * gradient * gradient
        # Both means start at zero and are too small at first.
        steps = i + 1
        first_share = 1 - 0.9**steps
        second_share = 1 - 0.999**steps
        size = xp.sqrt(self.second / second_share) + 1e-8
        return self.rate * self.first / first_share / size
