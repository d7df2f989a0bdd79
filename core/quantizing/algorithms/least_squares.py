"""Scales by least squares, where the codes are given."""

from __future__ import annotations

from dataclasses import replace

from array_api_compat import array_namespace

from octavo.core.numerics.affine import Array, QuantParams
from octavo.core.numerics.codec import project
from octavo.core.numerics.layout import spread
from octavo.core.numerics.scales import has_movable_scales as can_fit

__all__ = ["can_fit", "chosen", "in_steps", "rounded_steps", "with_fitted"]


def in_steps(numbers: Array, params: QuantParams) -> Array:
    """Return numbers divided by their scales, float32, of the numbers' shape."""

    def divided(x: Array, scale: Array) -> Array:
        return x / scale

    return spread(divided, numbers, params.spec, params.axis, params.scale)


def rounded_steps(matrix: Array, params: QuantParams) -> Array:
    """Return u of W_q = scale * u: whole numbers for integers, numbers of the format for others."""
    return in_steps(project(matrix, params), params)


def with_fitted(params: QuantParams, products: Array, energy: Array) -> QuantParams:
    """Return parameters with scale = products / energy; the old one where that is not positive.

    Args:
        params: Any granularity.
        products: <w, u> of each scale, in the shape of the scales.
        energy: <u, u>, likewise.
    """
    xp = array_namespace(params.scale)
    is_usable = (energy > 0) & (products > 0)
    one = xp.ones_like(energy)
    fitted = products / xp.where(is_usable, energy, one)
    is_usable = is_usable & xp.isfinite(fitted)
    return replace(params, scale=xp.where(is_usable, fitted, params.scale))


def chosen(better: Array, tried: QuantParams, best: QuantParams) -> QuantParams:
    """Return the tried parameters where they are better."""
    xp = array_namespace(better)
    scale = xp.where(better, tried.scale, best.scale)
    zero_point = xp.where(better, tried.zero_point, best.zero_point)
    return replace(best, scale=scale, zero_point=zero_point)
