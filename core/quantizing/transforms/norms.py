"""What a normalisation's own parameters tell of its output, without data."""

from __future__ import annotations

from array_api_compat import array_namespace

from octavo.core.numerics.affine import Array

from .base import Link

UNKNOWN = (
    "no norm's own gain is known there: a batch norm that was folded before the model was saved "
    "tells nothing any more"
)
"""Why a group is left alone by what reads the parameters of norms."""


def gain_and_shift(link: Link) -> tuple[Array, Array] | None:
    """Return (gain, shift) of the norm that produces a group's value; None if none does.

    Both are float32, of shape (channels,). A gain that is stored as what is added to one is
    returned as the norm multiplies by it. A batch norm folded into a convolution or linear op
    counts where the adapter's group names what it was.
    """
    group = link.group
    if not group.gain:
        return None
    stored = link.tensor(group.gain)
    xp = array_namespace(stored)
    gain = xp.reshape(xp.astype(stored, xp.float32), (-1,))
    if group.offset:
        gain = 1 + gain
    if not group.shift:
        return gain, xp.zeros_like(gain)
    shift = xp.astype(link.tensor(group.shift), xp.float32)
    return gain, xp.reshape(shift, (-1,))


def absmax_from_norm(
    gain: Array, shift: Array, deviations: float, *, rectified: bool = False
) -> Array:
    """Return the largest absolute output of each channel of a norm, shape (channels,).

    A normalised channel has mean ``shift`` and standard deviation ``|gain|``, so that its values
    lie within shift +- deviations * |gain|: the largest is |shift| + deviations * |gain|, and
    behind a ReLU max(0, shift + deviations * |gain|).

    Source: Yvinec et al. 2022, "SPIQ", section 3.2; Nagel et al. 2019, section 4.2 (six
    deviations).
    """
    xp = array_namespace(gain)
    spread = deviations * xp.abs(gain)
    if not rectified:
        return xp.abs(shift) + spread
    upper = shift + spread
    return xp.maximum(upper, xp.zeros_like(upper))
