"""What a normalisation's own parameters tell of its output, without data."""

from __future__ import annotations

from array_api_compat import array_namespace

from octavo.core.numerics.affine import Array

from .base import Link


def gain_and_shift(link: Link) -> tuple[Array, Array] | None:
    """Return (gain, shift) of the norm that produces a group's value; None if none does.

    Both are float32, of shape (channels,).
    A batch norm folded into a convolution counts where the adapter's group names its tensors.
    """
    if not link.group.gain:
        return None
    gain = link.tensor(link.group.gain)
    xp = array_namespace(gain)
    gain = xp.astype(gain, xp.float32)
    if not link.group.shift:
        return gain, xp.zeros_like(gain)
    return gain, xp.astype(link.tensor(link.group.shift), xp.float32)


def absmax_from_norm(gain: Array, shift: Array, deviations: float) -> Array:
    """Return the largest absolute output of each channel of a norm, shape (channels,).

    It is |shift| + deviations * |gain|.
    A normalised channel has mean ``shift`` and standard deviation ``|gain|``.

    Source: Yvinec et al. 2022, "SPIQ", section 3.2; Nagel et al. 2019, section 4.2 (six
    deviations).
    """
    xp = array_namespace(gain)
    return xp.abs(shift) + deviations * xp.abs(gain)
