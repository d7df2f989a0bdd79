"""Smallest and largest values per scale of a weight matrix."""

from __future__ import annotations

from array_api_compat import array_namespace, device

from octavo.core.errors import NonFiniteWeight
from octavo.core.values.scheme import QuantSpec
from octavo.core.values.sizes import block_shape, scale_shape

from .affine import Array, QuantParams
from .codec import choose_params


def ranges(matrix: Array, spec: QuantSpec) -> tuple[Array, Array]:
    """Return (low, high) of a (rows, features) matrix, float32, in the shape of its scales.

    Raises:
        NonFiniteWeight: If the matrix holds NaN or Inf; both survive into its extremes, so the
            check costs nothing.
    """
    xp = array_namespace(matrix)
    rows, features = matrix.shape
    shape = scale_shape(rows, features, spec)
    if 0 in matrix.shape:
        empty = xp.zeros(shape, dtype=xp.float32, device=device(matrix))
        return empty, empty
    low, high = _extremes(matrix, spec)
    low = xp.astype(low, xp.float32)
    high = xp.astype(high, xp.float32)
    is_finite = xp.all(xp.isfinite(low)) & xp.all(xp.isfinite(high))
    if not bool(is_finite):
        raise NonFiniteWeight(
            "a weight holds NaN or Inf; repair it, or keep its op in float with a rule"
        )
    return low, high


def token_params(x: Array, spec: QuantSpec) -> QuantParams:
    """Choose parameters for each token of an activation, as a dynamic kernel does at run time.

    A token is a row along the last axis.

    Args:
        x: Any float dtype, shape (..., features), features > 0.
        spec: Any dtype; its granularity is ``token``.

    Returns:
        Parameters of shape (..., 1).
    """
    xp = array_namespace(x)
    low = xp.min(x, axis=-1, keepdims=True)
    high = xp.max(x, axis=-1, keepdims=True)
    params, _ = choose_params(low, high, spec, None)
    return params


def _extremes(matrix: Array, spec: QuantSpec) -> tuple[Array, Array]:
    xp = array_namespace(matrix)
    if spec.granularity == "tensor":
        return xp.min(matrix), xp.max(matrix)
    if spec.granularity == "channel":
        return xp.min(matrix, axis=1), xp.max(matrix, axis=1)
    tall, wide = block_shape(spec)
    blocks = _in_blocks(matrix, tall, wide)
    return xp.min(blocks, axis=(1, 3)), xp.max(blocks, axis=(1, 3))


def _in_blocks(matrix: Array, tall: int, wide: int) -> Array:
    """Return a matrix as (rows of blocks, tall, columns of blocks, wide).

    Short last blocks are filled up with their own last value, which changes no extreme.
    """
    xp = array_namespace(matrix)
    rows, columns = matrix.shape
    if missing := -columns % wide:
        last = xp.broadcast_to(matrix[:, -1:], (rows, missing))
        matrix = xp.concat([matrix, last], axis=1)
        columns += missing
    if missing := -rows % tall:
        last = xp.broadcast_to(matrix[-1:, :], (missing, columns))
        matrix = xp.concat([matrix, last], axis=0)
        rows += missing
    shape = (rows // tall, tall, columns // wide, wide)
    return xp.reshape(matrix, shape)
