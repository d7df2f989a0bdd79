"""Losses of rows of outputs, and random gradients with their Hessians, for arrays of any library.

What they mean stands in :mod:`~octavo.core.contract.output_metric`.
"""

from __future__ import annotations

import numpy as np
from array_api_compat import array_namespace, device

from octavo.core.numerics.affine import Array
from octavo.core.numerics.arrays import is_finite

LEAST_LOG = -1e4
"""What a logit counts as that is no finite number, as masked words have it: e^-10000 is 0."""

LEAST_ODDS = 1e-9
"""What a probability counts as at least: rounded ones reach 0, whose logarithm is infinite."""

SMALL = 0.03
"""Changes of logits below which e^c - 1 - c is taken by its series: the terms left out are then
below a millionth, and the difference itself would be lost in float32."""

LARGE = 40.0
"""Changes of logits from which e^c may overflow: the plain formula, which loses nothing there."""

TINY = 1e-30
"""Least length and variance that is divided by."""


def divergence(y: Array, y0: Array) -> Array:
    """Return KL(softmax(y0) || softmax(y)) of each row of logits, (rows,).

    With c = d - sum p d for d = y - y0 it is log(1 + sum p (e^c - 1 - c)): nothing in it is a small
    difference of large numbers, so that float32 is enough for 8 bits too.
    """
    xp = array_namespace(y)
    if not (is_finite(y0) and is_finite(y)):
        y0 = xp.where(y0 < LEAST_LOG, LEAST_LOG, y0)
        y = xp.where(y < LEAST_LOG, LEAST_LOG, y)
    p = odds(y0)
    d = y - y0
    shift = xp.sum(p * d, axis=1, keepdims=True)
    c = d - shift
    largest = xp.max(xp.abs(c))
    if largest < SMALL:
        bend = c * c * (0.5 + c * (1.0 / 6.0 + c / 24.0))
    elif largest < LARGE:
        bend = xp.expm1(c) - c
    else:
        return xp.sum(p * (_log_odds(y0) - _log_odds(y)), axis=1)
    return xp.log1p(xp.sum(p * bend, axis=1))


def _log_odds(y: Array) -> Array:
    xp = array_namespace(y)
    y = y - xp.max(y, axis=1, keepdims=True)
    return y - xp.log(xp.sum(xp.exp(y), axis=1, keepdims=True))


def odds(y: Array) -> Array:
    """Return the softmax of each row."""
    xp = array_namespace(y)
    powers = xp.exp(y - xp.max(y, axis=1, keepdims=True))
    return powers / xp.sum(powers, axis=1, keepdims=True)


def logarithm(y: Array) -> Array:
    """Return the logarithm of probabilities."""
    xp = array_namespace(y)
    return xp.log(xp.where(y < LEAST_ODDS, LEAST_ODDS, y))


def _unit(y: Array) -> Array:
    """Return each row at length 1."""
    return y / _length(y)


def _length(y: Array) -> Array:
    xp = array_namespace(y)
    square = xp.sum(y * y, axis=1, keepdims=True)
    return xp.sqrt(xp.where(square < TINY, TINY, square))


def turned(y: Array, y0: Array) -> Array:
    """Return 1 - cos, as half the squared difference of the rows at length 1.

    That is the same, and keeps the digits which 1 - cos loses where the two are near.
    """
    xp = array_namespace(y)
    difference = _unit(y) - _unit(y0)
    return xp.sum(difference * difference, axis=1) / 2.0


def share_of_variance(y: Array, y0: Array, spread: np.ndarray | None) -> Array:
    """Return the mean over channels of the squared difference over the channel's variance."""
    xp = array_namespace(y)
    d = (y - y0) * like(precision(spread), y)
    return xp.sum(d * d, axis=1) / 2.0


def precision(spread: np.ndarray | None) -> np.ndarray:
    """Return what each channel's difference is multiplied by: half its square is the loss."""
    assert spread is not None
    has_spread = spread > 0
    number = max(1, int(has_spread.sum()))
    shares = np.divide(
        2.0, number * spread, out=np.zeros_like(spread), where=has_spread
    )
    found: np.ndarray = np.sqrt(shares).astype(np.float32)
    return found


def label_gradient(y0: Array, random: np.random.Generator, *, are_odds: bool) -> Array:
    """Return the gradient of -log p(label) for labels that are drawn from the rows' predictions."""
    xp = array_namespace(y0)
    p = y0 if are_odds else odds(y0)
    cumulated = xp.cumulative_sum(p, axis=1)
    drawn = random.random(y0.shape[0], dtype=np.float32)
    # Rows add up to 1 but for rounding.
    threshold = like(drawn, y0)[:, None] * cumulated[:, -1:]
    passed = xp.astype(cumulated <= threshold, xp.int64)
    label = xp.sum(passed, axis=1)[:, None]
    places = xp.arange(y0.shape[1], device=device(y0))[None, :]
    is_label = xp.astype(places == label, xp.float32)
    if are_odds:
        return -is_label / xp.where(p < LEAST_ODDS, LEAST_ODDS, p)
    return p - is_label


def across(noise: Array, y0: Array) -> Array:
    """Return noise without its part along each row, over the row's length."""
    xp = array_namespace(y0)
    direction = _unit(y0)
    along = xp.sum(noise * direction, axis=1, keepdims=True)
    return (noise - along * direction) / _length(y0)


def like(x: np.ndarray, y: Array) -> Array:
    """Return an array of another's library, on its device."""
    xp = array_namespace(y)
    return xp.asarray(x, device=device(y))
