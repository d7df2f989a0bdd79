"""Axes and index lists as operators give them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from octavo.adapters.numpy.graph import Array


def along(vector: Array, axis: int, ndim: int) -> Array:
    """View a vector as an array of ``ndim`` axes that lies along one of them."""
    lengths = [1] * ndim
    lengths[axis] = -1
    return vector.reshape(lengths)


def integers(
    given: Array | None, attribute: Sequence[int] | None = None
) -> tuple[int, ...] | None:
    """Return a list of integers that is an input in newer operator sets, an attribute in older."""
    if given is not None:
        return tuple(int(i) for i in np.asarray(given).reshape(-1))
    if attribute is not None:
        return tuple(attribute)
    return None


def scalar_int(given: Array) -> int:
    """Return the one integer of an array, whatever its rank."""
    return int(np.asarray(given).reshape(()))
