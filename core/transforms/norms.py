"""What a normalisation's own parameters tell of its output, without data."""

from __future__ import annotations

from array_api_compat import array_namespace

from ..numerics.affine import Array
from .base import Link

NORMS = ("layer_norm", "rms_norm", "batch_norm")


def gain_and_shift(link: Link) -> tuple[Array, Array] | None:
    """Return (gain, shift) of the norm that produces a group's value, float32, shape (channels,); None if none does.

    A batch norm folded into a convolution is known by the attributes ``norm_gain`` and ``norm_shift``, the names of its
    tensors, that an adapter may state on the op.
    """
    producer = link.view.by_name.get(link.group.producer)
    if producer is None:
        return None
    gain, shift = producer.attributes.get("norm_gain"), producer.attributes.get("norm_shift")
    if producer.type in NORMS and producer.weight is not None:
        gain, shift = producer.weight.name, producer.bias
    if not isinstance(gain, str):
        return None
    g = link.tensor(gain)
    xp = array_namespace(g)
    g = xp.astype(g, xp.float32)
    return g, xp.astype(link.tensor(shift), xp.float32) if isinstance(shift, str) else xp.zeros_like(g)


def absmax_from_norm(gain: Array, shift: Array, deviations: float) -> Array:
    """Return the largest absolute output of each channel of a norm: |shift| + deviations * |gain|, shape (channels,).

    A normalised channel has mean ``shift`` and standard deviation ``|gain|``.

    Source: Yvinec et al. 2022, "SPIQ", section 3.2; Nagel et al. 2019, section 4.2 (six deviations).
    """
    xp = array_namespace(gain)
    return xp.abs(shift) + deviations * xp.abs(gain)
