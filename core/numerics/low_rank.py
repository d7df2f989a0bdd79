"""A product of two thin matrices beside a quantized matrix, which takes in most of its error.

Sources: Zhang et al. 2024, "LQER: Low-Rank Quantization Error Reconstruction for LLMs", eq. 8 and
9; Liu et al. 2024, "EoRA: Training-free Compensation for Compressed LLM with Eigenspace Low-Rank
Approximation", algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from array_api_compat import array_namespace

from octavo.core.errors import SchemeError

from .layout import from_matrix
from .scales import HALVES, half_dtype

Array = Any


@dataclass(frozen=True, slots=True, eq=False)
class Repair:
    """``left @ right``, which is added to a quantized weight.

    Attributes:
        left: Shape (rows, rank); float16, bfloat16 or float32. A row is an output channel.
        right: Shape (rank, features), of the same type.
        axis: The weight's axis of output channels; the others are flattened into the features.
    """

    left: Array
    right: Array
    axis: int = 0

    @property
    def rank(self) -> int:
        """Number of columns of :attr:`left`."""
        return int(self.left.shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes of both factors."""
        return sum(
            factor.shape[0] * factor.shape[1] * _item_bytes(factor)
            for factor in (self.left, self.right)
        )

    def matrix(self) -> Array:
        """Return the product, float32, shape (rows, features)."""
        xp = array_namespace(self.left)
        left = xp.astype(self.left, xp.float32)
        return xp.matmul(left, xp.astype(self.right, xp.float32))

    def whole(self, shape: tuple[int, ...]) -> Array:
        """Return the product in the weight's own shape, float32."""
        return from_matrix(self.matrix(), shape, self.axis)


def _item_bytes(array: Array) -> int:
    return int(array.dtype.itemsize)


def least_error_factors(error: Array, gram: Array | None, rank: int) -> Repair:
    """Return the factors B, A of one rank for which tr((E - B A) G (E - B A)^T) is least.

    By Eckart and Young in the norm of G: with C C^T = G, the truncated singular value decomposition
    of E C is U_r U_r^T E C, brought back by C's inverse: B A = U_r U_r^T E C C^-1. (EoRA takes C =
    Q sqrt(L) of G = Q L Q^T.) C and its inverse cancel, so that nothing is divided by an eigenvalue
    that is zero: B = U_r and A = U_r^T E, where U_r are the leading eigenvectors of E G E^T. Where
    a matrix has more rows than features they come from the smaller C^T E^T E C.

    Args:
        error: E, what quantization takes from the weight: float32, shape (rows, features).
        gram: G, float32, shape (features, features), or its diagonal alone, (features,), where it
            has nothing else; None weighs all features alike (LQER).
        rank: At least 1; more than the matrix has is cut to that.

    Returns:
        float32 factors of like size. Cost: one eigenvalue decomposition of the smaller side (two
        where that is the features), and products of rows x features x the smaller side.

    Raises:
        SchemeError: If the rank is below 1.
    """
    if rank < 1:
        raise SchemeError(
            f"a low-rank repair of rank {rank} repairs nothing: give a rank of at least 1, "
            "or leave the repair out"
        )
    xp = array_namespace(error)
    rank = min(rank, *error.shape)
    tall = error.shape[0] > error.shape[1]
    found = _from_features if tall else _from_rows
    left = found(error, gram, rank)
    right = xp.matmul(left.T, error)
    return _balanced(left, right)


def _from_rows(error: Array, gram: Array | None, rank: int) -> Array:
    """Return the leading eigenvectors of E G E^T, shape (rows, rank)."""
    xp = array_namespace(error)
    return _leading(xp.matmul(_times(error, gram), error.T), rank)


def _from_features(error: Array, gram: Array | None, rank: int) -> Array:
    """Return the same of a tall matrix: an orthonormal basis of E C V_r."""
    xp = array_namespace(error)
    image = error if gram is None else _times(error, _root(gram))
    leading = _leading(xp.matmul(image.T, image), rank)
    # Not divided by the singular values, which may be zero.
    return xp.linalg.qr(xp.matmul(image, leading))[0]


def _times(error: Array, matrix: Array | None) -> Array:
    """Return E M; a vector stands for a diagonal matrix, None for one of ones."""
    if matrix is None:
        return error
    is_diagonal = matrix.ndim == 1
    return (
        error * matrix if is_diagonal else array_namespace(error).matmul(error, matrix)
    )


def _root(gram: Array) -> Array:
    """Return Q sqrt(L) of G = Q L Q^T; what rounding made negative counts as zero."""
    xp = array_namespace(gram)
    if gram.ndim == 1:
        return xp.sqrt(xp.maximum(gram, xp.zeros_like(gram)))
    values, vectors = xp.linalg.eigh(_symmetric(gram))
    return vectors * xp.sqrt(xp.maximum(values, xp.zeros_like(values)))[None, :]


def _leading(square: Array, rank: int) -> Array:
    """Return the eigenvectors of the largest eigenvalues, the largest first."""
    xp = array_namespace(square)
    _, vectors = xp.linalg.eigh(_symmetric(square))  # ascending
    return xp.flip(vectors[:, -rank:], axis=1)


def _symmetric(square: Array) -> Array:
    return (square + square.T) / 2


def _balanced(left: Array, right: Array) -> Repair:
    """Return factors whose largest numbers are alike for each rank: 16 bits hold both then."""
    xp = array_namespace(left)
    of_left = xp.max(xp.abs(left), axis=0)
    of_right = xp.max(xp.abs(right), axis=1)
    is_empty = (of_left == 0) | (of_right == 0)
    one = xp.ones_like(of_left)
    ratio = xp.where(is_empty, one, of_right) / xp.where(is_empty, one, of_left)
    # A power of two, which changes no digit.
    factor = xp.pow(xp.full_like(ratio, 2.0), xp.round(xp.log2(ratio) / 2))
    return Repair(left * factor[None, :], right / factor[:, None])


def narrowed(repair: Repair, dtype: str) -> Repair:
    """Return a repair with factors of another type.

    Args:
        repair: float32 factors.
        dtype: ``float16``, ``bfloat16`` or ``float32``.

    Raises:
        SchemeError: If the array library has no such type.
    """
    xp = array_namespace(repair.left)
    kind = half_dtype(repair.left, dtype) if dtype in HALVES else xp.float32
    left, right = xp.astype(repair.left, kind), xp.astype(repair.right, kind)
    return Repair(left, right, repair.axis)
