"""Importance-weighted search of scales: errors count as much as their feature or weight does."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from array_api_compat import array_namespace

from octavo.core.contract.algorithm import WeightAlgorithm, WeightConfig, WeightContext
from octavo.core.errors import SchemeError
from octavo.core.numerics.affine import Array, QuantParams
from octavo.core.numerics.codec import encode, project
from octavo.core.numerics.scales import rounded_scale
from octavo.core.numerics.tensor import QuantizedTensor
from octavo.core.values.scheme import QuantSpec

from .learned import grown
from .least_squares import can_fit, chosen, rounded_steps, with_fitted
from .search import Grid, own_grid, power_cost, searched_grid, sum_by_scale

_AROUND = (1.0, 0.9, 1.1, 0.95, 1.05, 0.975, 1.025, 1.0)
"""Shares of the best scale so far whose codes a scale is fitted to, one after the other."""

_RATIOS = (1.0, 1.4, 1.25, 1.12, *(0.935**i for i in range(1, 27)))
"""Shares of the range that are tried, down to a sixth: where few features count, a range over them
alone may be the best. Beyond the whole range the numbers of nf4 and fp4 lie closer."""

_NEEDS = {"inputs": "channel_square", "gradients": "gradient_square"}


class ImportanceConfig(WeightConfig):
    """Settings of the importance-weighted search.

    Attributes:
        importance: What an error counts by: ``inputs``, the mean square of the input feature that
            the weight multiplies; ``gradients``, the mean square of the loss's gradient at the
            weight itself (backends with the feature ``gradients``).
        keep_size: Let each row's scales grow in the end by what its weighted size has shrunk
            (:func:`.learned.grown`). The error that was minimised grows by that; the error of a
            deep model shrinks.
    """

    kind: Literal["importance"] = "importance"
    importance: Literal["inputs", "gradients"] = "inputs"
    keep_size: bool = True

    def needs(self, card: frozenset[str]) -> frozenset[str]:
        """Inputs or gradients are observed, never both."""
        return super().needs(card) | {_NEEDS[self.importance]}


class Importance(WeightAlgorithm):
    """Minimises sum h (w - W_q)^2 over each scale, h the importance; then rounds to nearest.

    Sources: llama.cpp, ``--imatrix``, ggml-quants.c, make_qx_quants: ranges are tried, and scales
    are fitted to the codes by weighted least squares, sum h w u / sum h u^2; h is E[x^2] of the
    feature. Kim et al. 2024, "SqueezeLLM", eq. 4: h is the diagonal of the Fisher matrix, the mean
    square of the weight's gradient. (Their code books are not uniform; the scale is what a uniform
    one leaves to choose.) Dead features count for nothing, and are rounded on the others' grid.

    Needs what ``importance`` says. Cost: about 50 passes over the weight; 70 asymmetric.
    """

    config: ImportanceConfig

    def quantize(
        self, matrix: Array, spec: QuantSpec, context: WeightContext
    ) -> QuantizedTensor:
        """Quantize to any dtype and granularity."""
        xp = array_namespace(matrix)
        weight = xp.astype(matrix, xp.float32)
        if context.params is not None or 0 in matrix.shape:
            params, extra = own_grid(weight, spec, context)
            return QuantizedTensor(encode(weight, params), params, extra)
        heed = self._importance(context)
        params, extra = weighted_grid(weight, spec, context, heed)
        found = QuantizedTensor(encode(weight, params), params, extra)
        return grown(found, weight, weight * heed) if self.config.keep_size else found

    def _importance(self, context: WeightContext) -> Array:
        if self.config.importance == "gradients":
            found, lacking = context.gradient_square, "squared gradients of the weight"
        else:
            found, lacking = context.channel_square, "mean squares of the op's input"
        if found is None:
            raise SchemeError(
                f"importance needs the {lacking}: give calibration data, or use rtn or hqq, which "
                "need none"
            )
        return found


def weighted_grid(
    weight: Array, spec: QuantSpec, context: WeightContext, importance: Array
) -> Grid:
    """Return the grid of least importance-weighted squared error.

    Args:
        weight: float32, shape (rows, features).
        spec: Any dtype and granularity.
        context: Prescribes no grid.
        importance: Of each feature or weight, shape (features,) or (rows, features), 0 or more.
    """
    xp = array_namespace(weight)
    heed = xp.asarray(importance, dtype=xp.float32)
    # Of the size of one, so that squares of small inputs stay normal numbers.
    mean = xp.mean(heed)
    heed = heed / xp.where(mean > 0, mean, xp.ones_like(mean))
    cost = power_cost(spec, 2.0, heed)
    params, extra = searched_grid(weight, spec, context, cost, _RATIOS)
    if not can_fit(spec):
        return params, extra
    error = cost(weight, project(weight, params))
    for share in _AROUND:
        near = replace(params, scale=params.scale * share)
        tried = _fitted(weight, near, heed)
        tried_error = cost(weight, project(weight, tried))
        better = tried_error < error
        error = xp.where(better, tried_error, error)
        params = chosen(better, tried, params)
    # Scales of several turns share one second level.
    return rounded_scale(params)


def _fitted(weight: Array, params: QuantParams, heed: Array) -> QuantParams:
    """Return scales of weighted least squares for the codes that parameters give."""
    spec = params.spec
    steps = rounded_steps(weight, params)
    products = sum_by_scale(heed * weight * steps, spec)
    energy = sum_by_scale(heed * steps * steps, spec)
    fitted = with_fitted(params, products, energy)
    # As it will be stored.
    rounded, _ = rounded_scale(fitted)
    return rounded
