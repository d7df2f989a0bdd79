"""AdaRound: learn for each weight whether to round up or down."""

from __future__ import annotations

from typing import Literal

from array_api_compat import array_namespace
from pydantic import Field

from octavo.core.contract.algorithm import WeightAlgorithm, WeightConfig, WeightContext
from octavo.core.errors import SchemeError
from octavo.core.numerics.affine import Array, QuantParams, integer_range, is_integer, narrow
from octavo.core.numerics.layout import spread
from octavo.core.numerics.tensor import QuantizedTensor
from octavo.core.values.scheme import QuantSpec

from .learned import normalised, output_error, unshrunk
from .search import output_grid

_STRETCH = (-0.1, 1.1)
"""zeta and gamma of the rectified sigmoid (eq. 23)."""


class AdaRoundConfig(WeightConfig):
    """Settings of AdaRound.

    Attributes:
        iterations: Steps of Adam.
        step: Its step size.
        regularization: Weight of the term that drives every rounding to a decision, against the mean output error.
        warm_up: Share of the iterations before that term sets in.
    """

    kind: Literal["adaround"] = "adaround"
    iterations: int = Field(400, ge=1)
    step: float = Field(0.02, gt=0)
    regularization: float = Field(0.01, ge=0)
    warm_up: float = Field(0.2, ge=0, lt=1)


class AdaRound(WeightAlgorithm):
    """Minimises the output error over h(V) in [0, 1], W_q = s clip(floor(W / s) + h(V) + z), and rounds up where h(V) >= 0.5.

    Paper: Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization", eqs. 21 to 24:
    h(V) = clip(1.2 sigmoid(V) - 0.1, 0, 1), regularised by 1 - |2 h(V) - 1|**b with b falling from 20 to 2, solved by Adam.
    On a Gram matrix L = tr((W_q - W) G (W_q - W)^T) has a gradient in closed form, so no autograd is needed. A row
    whose decided rounding is worse than rounding to nearest keeps the latter; then its scales grow by what its outputs have
    shrunk (:func:`~octavo.core.quantizing.algorithms.learned.unshrunk`).

    Needs the Gram matrix; integer dtypes. Cost: one product rows x features x features per iteration.
    """

    config: AdaRoundConfig

    def quantize(self, matrix: Array, spec: QuantSpec, context: WeightContext) -> QuantizedTensor:
        """Quantize per tensor, channel, group or block."""
        if not is_integer(spec):
            raise SchemeError(
                f"adaround learns the rounding of integers; for {spec.dtype} use gptq, awq or rtn"
            )
        xp = array_namespace(matrix)
        weight, gram = xp.astype(matrix, xp.float32), normalised(context.require_gram("adaround"))
        params, extra = output_grid(weight, spec, context, gram)
        codes = (
            xp.astype(weight, xp.int32) if 0 in matrix.shape else self._learn(weight, gram, params)
        )
        return unshrunk(QuantizedTensor(narrow(codes, spec), params, extra), weight, context)

    def _learn(self, weight: Array, gram: Array, params: QuantParams) -> Array:
        xp = array_namespace(weight)
        low, high = integer_range(params.spec)
        scale, zero = (
            spread(
                lambda v, p: p + 0 * v, weight, params.spec, params.axis, xp.astype(p, xp.float32)
            )
            for p in (params.scale, params.zero_point)
        )
        floor = xp.floor(weight / scale)
        share = xp.clip(weight / scale - floor, 0.001, 0.999)
        span = _STRETCH[1] - _STRETCH[0]
        v = -xp.log(span / (share - _STRETCH[0]) - 1)  # where h(V) is the weight's own fraction
        # The output error counts in squared steps of the grid, so that its balance with the regulariser is the same for any weight.
        unit = 1 / xp.mean(scale * scale)
        first, second = xp.zeros_like(v), xp.zeros_like(v)
        for i in range(self.config.iterations):
            sigmoid = 1 / (1 + xp.exp(-v))
            h = xp.clip(sigmoid * span + _STRETCH[0], 0.0, 1.0)
            code = floor + h + zero
            _, slope = output_error(scale * (xp.clip(code, low, high) - zero) - weight, gram)
            gradient = xp.where(
                (code >= low) & (code <= high), 2 * unit * scale * slope, xp.zeros_like(slope)
            )
            gradient = (gradient + self._decisiveness(h, i)) * xp.where(
                (h > 0) & (h < 1), span * sigmoid * (1 - sigmoid), xp.zeros_like(h)
            )
            first, second = (
                0.9 * first + 0.1 * gradient,
                0.999 * second + 0.001 * gradient * gradient,
            )
            v = v - self.config.step * first / (1 - 0.9 ** (i + 1)) / (
                xp.sqrt(second / (1 - 0.999 ** (i + 1))) + 1e-8
            )
        learned = xp.clip(floor + xp.astype(v >= 0, xp.float32) + zero, low, high)
        nearest = xp.clip(xp.round(weight / scale) + zero, low, high)
        mine, _ = output_error(scale * (learned - zero) - weight, gram)
        plain, _ = output_error(scale * (nearest - zero) - weight, gram)
        return xp.astype(xp.where((mine < plain)[:, None], learned, nearest), xp.int32)

    def _decisiveness(self, h: Array, i: int) -> Array:
        """Return the gradient of regularization * (1 - |2h - 1|**b)."""
        xp = array_namespace(h)
        start = self.config.warm_up * self.config.iterations
        if i < start:
            return xp.zeros_like(h)
        progress = (i - start) / max(1.0, self.config.iterations - start)
        b = 2 + 18 * (1 - progress)
        distance = 2 * h - 1
        return -self.config.regularization * 2 * b * xp.sign(distance) * xp.abs(distance) ** (b - 1)
