"""Which elements share a scale: tensors as matrices, groups, blocks and tokens, and scales spread over them."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

from array_api_compat import array_namespace

from octavo.core.values.scheme import QuantSpec
from octavo.core.values.sizes import block_shape, is_grouped

Array = Any


def to_matrix(x: Array, axis: int) -> Array:
    """Return ``x`` as (channels, features): the channel axis first, the others flattened in their order."""
    xp = array_namespace(x)
    moved = xp.moveaxis(x, axis, 0) if axis % x.ndim else x
    return xp.reshape(moved, (moved.shape[0], prod(moved.shape[1:])))


def from_matrix(matrix: Array, shape: tuple[int, ...], axis: int) -> Array:
    """Undo :func:`to_matrix` for a tensor of ``shape``."""
    xp = array_namespace(matrix)
    axis %= len(shape)
    moved = (shape[axis], *shape[:axis], *shape[axis + 1 :])
    tensor = xp.reshape(matrix, moved)
    return xp.moveaxis(tensor, 0, axis) if axis else tensor


def contiguous(x: Array) -> Array:
    """Return ``x`` in row-major memory; a copy only where it is not."""
    xp = array_namespace(x)
    # A flattened view exists only of row-major memory, so this copies exactly when it must.
    return xp.reshape(xp.reshape(x, (-1,)), tuple(x.shape))


def spread(
    function: Callable[..., Array], x: Array, spec: QuantSpec, axis: int | None, *parameters: Array
) -> Array:
    """Apply ``function(x, *parameters)`` with parameters broadcast to the elements that share them.

    Args:
        function: Elementwise; its result has the shape of its first argument.
        x: The tensor.
        spec: Its granularity says how parameters spread.
        axis: Channel axis; None for ``tensor`` and ``token``.
        parameters: As :class:`~octavo.core.numerics.affine.QuantParams` holds them.
    """
    xp = array_namespace(x, *parameters)
    if axis is None or parameters[0].ndim == 0:
        return function(x, *parameters)
    if not is_grouped(spec):
        shape = [1] * x.ndim
        shape[axis] = -1
        return function(x, *(xp.reshape(p, tuple(shape)) for p in parameters))
    matrix = to_matrix(x, axis)
    rows, columns = block_shape(spec)
    if rows == 1 and matrix.shape[1] % columns == 0:
        grouped = xp.reshape(matrix, (matrix.shape[0], matrix.shape[1] // columns, columns))
        result = xp.reshape(function(grouped, *(p[:, :, None] for p in parameters)), matrix.shape)
    else:
        result = function(matrix, *(stretch(p, matrix.shape, rows, columns) for p in parameters))
    return from_matrix(result, tuple(x.shape), axis)


def stretch(parameter: Array, shape: tuple[int, ...], rows: int, columns: int) -> Array:
    """Repeat block parameters to the shape of their matrix."""
    xp = array_namespace(parameter)
    tall = xp.repeat(parameter, rows, axis=0)[: shape[0]] if rows > 1 else parameter
    return xp.repeat(tall, columns, axis=1)[:, : shape[1]]
