"""AutoRound: signed gradient descent on rounding and clipping."""

from __future__ import annotations

from dataclasses import replace
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
from octavo.core.numerics.tensor import QuantizedTensor
from octavo.core.values.scheme import QuantSpec
from octavo.core.values.sizes import is_grouped

from .learned import normalised, output_error, unshrunk
from .search import output_grid, sum_by_scale


class AutoRoundConfig(WeightConfig):
    """Settings of AutoRound.

    Attributes:
        iterations: Steps of signed gradient descent.
        step: Step size at the start, falling linearly to zero; None for 1 / iterations, as in the paper.
    """

    kind: Literal["autoround"] = "autoround"
    iterations: int = Field(200, ge=1)
    step: float | None = Field(None, gt=0)


class AutoRound(WeightAlgorithm):
    """Learns V in [-0.5, 0.5], added before rounding, and the shares of both ends of the range that are kept.

    Paper: Cheng et al. 2024, "Optimize Weight Rounding via Signed Gradient Descent for the Quantization of LLMs", eqs. 3 to 6:
    W_q = s clip(round(W / s + z + V), qmin, qmax) - s z, s = (max a - min b) / (qmax - qmin), with straight-through
    gradients and the step V -= lr sign(dL/dV). Here layer by layer: L = tr((W_q - W) G (W_q - W)^T) has the gradient
    2 (W_q - W) G, so a Gram matrix takes the place of inputs and autograd. Each row keeps the best state it has met, its scales
    grown by what its outputs have shrunk (:func:`~octavo.core.quantizing.algorithms.learned.unshrunk`).

    Needs the Gram matrix; integer dtypes. Cost: one product rows x features x features per iteration.
    """

    config: AutoRoundConfig

    def quantize(self, matrix: Array, spec: QuantSpec, context: WeightContext) -> QuantizedTensor:
        """Quantize per channel or per group; per tensor with the rounding alone."""
        if not is_integer(spec):
            raise SchemeError(
                f"autoround learns the rounding of integers; for {spec.dtype} use gptq, awq or rtn"
            )
        if spec.granularity.startswith("block:"):
            raise SchemeError(
                f"autoround keeps each row's best state and cannot share a scale over rows ({spec}); use group or channel granularity"
            )
        xp = array_namespace(matrix)
        weight, gram = xp.astype(matrix, xp.float32), normalised(context.require_gram("autoround"))
        start, extra = output_grid(weight, spec, context, gram)
        if 0 in matrix.shape:
            return QuantizedTensor(narrow(xp.astype(weight, xp.int32), spec), start, extra)
        learn_range = (
            context.params is None and spec.granularity != "tensor" and spec.scale_dtype is None
        )
        codes, params = self._descend(weight, gram, start, learn_range)
        found = QuantizedTensor(narrow(codes, spec), params, extra)
        return unshrunk(found, weight, context)

    def _descend(
        self, weight: Array, gram: Array, start: QuantParams, learn_range: bool
    ) -> tuple[Array, QuantParams]:
        xp = array_namespace(weight)
        spec = start.spec
        offset = xp.zeros_like(weight)
        keep = (xp.ones_like(start.scale), xp.ones_like(start.scale))
        rate = self.config.step or 1.0 / self.config.iterations
        params, best, best_loss = start, None, None
        for i in range(self.config.iterations + 1):
            codes, units, slope_of_scale = _rounded(weight, offset, params)
            loss, slope = output_error(units * _over(params.scale, weight, params) - weight, gram)
            if best is None:
                best_loss, best = loss, (codes, params.scale, params.zero_point)
            else:
                better = loss < best_loss
                best_loss = xp.where(better, loss, best_loss)
                row = better[:, None] if is_grouped(spec) else better
                grid = (params.scale, params.zero_point)
                kept = (
                    (xp.where(row, new, old) for new, old in zip(grid, best[1:], strict=True))
                    if learn_range
                    else best[1:]
                )
                best = (xp.where(better[:, None], codes, best[0]), *kept)
            step = rate * (1 - i / self.config.iterations)
            offset = xp.clip(offset - step * xp.sign(slope), -0.5, 0.5)
            if learn_range:
                keep = _stepped(keep, sum_by_scale(slope * slope_of_scale, spec), start, step)
                params = _kept(start, keep)
        assert best is not None
        return best[0], QuantParams(best[1], best[2], spec, start.axis)


def _over(parameter: Array, x: Array, params: QuantParams) -> Array:
    """Return a parameter spread over the elements that share it."""
    return spread(lambda v, p: p + 0 * v, x, params.spec, params.axis, parameter)


def _rounded(weight: Array, offset: Array, params: QuantParams) -> tuple[Array, Array, Array]:
    """Return (codes int32, codes - zero point, d W_q / d scale with straight-through rounding)."""
    xp = array_namespace(weight)
    qmin, qmax = integer_range(params.spec)
    ratio = spread(lambda w, s: w / s, weight, params.spec, params.axis, params.scale)
    zero = _over(xp.astype(params.zero_point, xp.float32), weight, params)
    raw = xp.round(ratio + offset) + zero
    codes = xp.clip(raw, qmin, qmax)
    units = codes - zero
    return (
        xp.astype(codes, xp.int32),
        units,
        units - xp.where(raw == codes, ratio, xp.zeros_like(ratio)),
    )


def _stepped(
    keep: tuple[Array, Array], slope: Array, start: QuantParams, step: float
) -> tuple[Array, Array]:
    """Move the kept shares (of the lower end, of the upper end) against the sign of their gradients."""
    xp = array_namespace(slope)
    low, high = _ends(start)
    # A larger share of either end makes the scale larger; an end at zero has no say.
    grown = (
        xp.sign(slope) * xp.astype(low < 0, xp.float32),
        xp.sign(slope) * xp.astype(high > 0, xp.float32),
    )
    below, above = (xp.clip(k - step * g, 0.5, 1.25) for k, g in zip(keep, grown, strict=True))
    return below, above


def _kept(start: QuantParams, keep: tuple[Array, Array]) -> QuantParams:
    """Return the grid over the kept shares of the range."""
    if start.spec.symmetric:
        return replace(start, scale=start.scale * keep[1])
    low, high = _ends(start)
    return affine_params(low * keep[0], high * keep[1], start.spec, start.axis)


def _ends(start: QuantParams) -> tuple[Array, Array]:
    xp = array_namespace(start.scale)
    qmin, qmax = integer_range(start.spec)
    zero = xp.astype(start.zero_point, xp.float32)
    return start.scale * (qmin - zero), start.scale * (qmax - zero)
