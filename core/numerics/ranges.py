"""Smallest and largest values per scale of a weight matrix."""

from __future__ import annotations

from array_api_compat import array_namespace, device

from octavo.core.errors import NonFiniteWeight
from octavo.core.values.scheme import QuantSpec
from octavo.core.values.sizes import block_shape, is_grouped, scale_shape

from .affine import Array, QuantParams
from .codec import choose


def ranges(matrix: Array, spec: QuantSpec) -> tuple[Array, Array]:
    """Return (low, high) of a (rows, features) matrix, float32, in the shape of its scales.

    Raises:
        NonFiniteWeight: If the matrix holds NaN or Inf; both survive into its extremes, so the check costs nothing.
    """
    xp = array_namespace(matrix)
    shape = scale_shape(matrix.shape[0], matrix.shape[1], spec)
    if 0 in matrix.shape:
        empty = xp.zeros(shape, dtype=xp.float32, device=device(matrix))
        return empty, empty
    if spec.granularity == "tensor":
        low, high = xp.min(matrix), xp.max(matrix)
    elif spec.granularity == "channel":
        low, high = xp.min(matrix, axis=1), xp.max(matrix, axis=1)
    else:
        low, high = _blockwise(matrix, spec)
    low, high = xp.astype(low, xp.float32), xp.astype(high, xp.float32)
    if not bool(xp.all(xp.isfinite(low)) & xp.all(xp.isfinite(high))):
        raise NonFiniteWeight(
            "a weight holds NaN or Inf; repair it, or keep its op in float with a rule"
        )
    return low, high


def token_params(x: Array, spec: QuantSpec) -> QuantParams:
    """Choose parameters for each token of an activation (row along its last axis), as a dynamic kernel does at run time.

    Args:
        x: Any float dtype, shape (..., features), features > 0.
        spec: Any dtype; its granularity is ``token``.

    Returns:
        Parameters of shape (..., 1).
    """
    xp = array_namespace(x)
    params, _ = choose(
        xp.min(x, axis=-1, keepdims=True), xp.max(x, axis=-1, keepdims=True), spec, None
    )
    return params


def _blockwise(matrix: Array, spec: QuantSpec) -> tuple[Array, Array]:
    xp = array_namespace(matrix)
    assert is_grouped(spec)
    rows, columns = block_shape(spec)
    # Short last groups are filled up with their own last value, which changes no extreme.
    if tail := -matrix.shape[1] % columns:
        matrix = xp.concat(
            [matrix, xp.broadcast_to(matrix[:, -1:], (matrix.shape[0], tail))], axis=1
        )
    if tail := -matrix.shape[0] % rows:
        matrix = xp.concat(
            [matrix, xp.broadcast_to(matrix[-1:, :], (tail, matrix.shape[1]))], axis=0
        )
    blocks = xp.reshape(
        matrix, (matrix.shape[0] // rows, rows, matrix.shape[1] // columns, columns)
    )
    return xp.min(blocks, axis=(1, 3)), xp.max(blocks, axis=(1, 3))
