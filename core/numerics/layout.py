"""Which elements share a scale: tensors as matrices, and scales spread over groups and blocks."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

from array_api_compat import array_namespace

from octavo.core.values.scheme import QuantSpec
from octavo.core.values.sizes import block_shape, is_grouped

Array = Any


def to_matrix(x: Array, axis: int) -> Array:
    """Return ``x`` as (channels, features).

    The channel axis comes first, the others are flattened in their order.
    """
    xp = array_namespace(x)
    is_first = axis % x.ndim == 0
    moved = x if is_first else xp.moveaxis(x, axis, 0)
    channels, *others = moved.shape
    return xp.reshape(moved, (channels, prod(others)))


def from_matrix(matrix: Array, shape: tuple[int, ...], axis: int) -> Array:
    """Undo :func:`to_matrix` for a tensor of ``shape``."""
    xp = array_namespace(matrix)
    axis %= len(shape)
    others = (*shape[:axis], *shape[axis + 1 :])
    tensor = xp.reshape(matrix, (shape[axis], *others))
    return xp.moveaxis(tensor, 0, axis) if axis else tensor


def contiguous(x: Array) -> Array:
    """Return ``x`` in row-major memory; a copy only where it is not."""
    xp = array_namespace(x)
    # A flattened view exists only of row-major memory, so this copies exactly when it must.
    flat = xp.reshape(x, (-1,))
    return xp.reshape(flat, tuple(x.shape))


def spread(
    function: Callable[..., Array],
    x: Array,
    spec: QuantSpec,
    axis: int | None,
    *parameters: Array,
) -> Array:
    """Apply ``function(x, *parameters)`` with parameters broadcast to what shares them.

    Args:
        function: Elementwise; its result has the shape of its first argument.
        x: The tensor.
        spec: Its granularity says how parameters spread.
        axis: Channel axis; None for ``tensor`` and ``token``.
        parameters: As :class:`~octavo.core.numerics.affine.QuantParams` holds them.
    """
    if axis is None or parameters[0].ndim == 0:
        return function(x, *parameters)
    if is_grouped(spec):
        result = _spread_in_blocks(
            function, to_matrix(x, axis), block_shape(spec), parameters
        )
        return from_matrix(result, tuple(x.shape), axis)
    xp = array_namespace(x, *parameters)
    ones = [1] * x.ndim
    ones[axis] = -1
    shape = tuple(ones)
    along_axis = [xp.reshape(parameter, shape) for parameter in parameters]
    return function(x, *along_axis)


def _spread_in_blocks(
    function: Callable[..., Array],
    matrix: Array,
    block: tuple[int, int],
    parameters: tuple[Array, ...],
) -> Array:
    xp = array_namespace(matrix, *parameters)
    tall, wide = block
    rows, features = matrix.shape
    if tall == 1 and features % wide == 0:
        # Whole groups: parameters broadcast along an axis of their own and are not repeated.
        grouped = xp.reshape(matrix, (rows, features // wide, wide))
        of_groups = [parameter[:, :, None] for parameter in parameters]
        result = function(grouped, *of_groups)
        return xp.reshape(result, (rows, features))
    stretched = [stretch(p, (rows, features), tall, wide) for p in parameters]
    return function(matrix, *stretched)


def stretch(parameter: Array, shape: tuple[int, ...], rows: int, columns: int) -> Array:
    """Repeat block parameters to the shape of their matrix."""
    xp = array_namespace(parameter)
    height, width = shape
    if rows > 1:
        parameter = xp.repeat(parameter, rows, axis=0)[:height]
    return xp.repeat(parameter, columns, axis=1)[:, :width]
