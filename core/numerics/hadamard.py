"""Hadamard rotation: an orthogonal matrix with entries of one size spreads outliers over channels.

Paper: Ashkboos et al. 2024, "QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs", section 3 and
appendix A.
"""

from __future__ import annotations

import math

import numpy as np
from array_api_compat import array_namespace, device

from .affine import Array


def hadamard(n: int, like: Array, seed: int | None = None) -> Array:
    """Return an orthogonal matrix with entries of nearly one size.

    n = 2**k * m, m odd: Sylvester's Hadamard matrix of order 2**k times (Kronecker) a discrete
    cosine basis of order m, which is 1 for powers of two. With a seed, its rows' signs are drawn at
    random (the randomised Hadamard matrix of QuaRot).

    Returns:
        float32, shape (n, n), in the namespace of ``like``.
    """
    power = _power_of_two_in(n)
    rest = n // power
    matrix = np.kron(_sylvester(power), _cosine(rest))
    if seed is not None:
        signs = _signs(n, seed)
        matrix = matrix * signs[:, None]
    return _placed(matrix, like)


def hadamard_parts(
    n: int, like: Array, seed: int | None = None
) -> tuple[Array, Array, Array]:
    """Return (signs, left, right), which rotate as ``hadamard(n, x, seed)`` does.

    With X = reshape(x * signs, (a, b)), ``x @ hadamard(n, x, seed)`` is the flattened left X right.
    Two small matrices where a runtime has products and no fast transform: n (a + b) multiply-adds a
    row in place of n * n.

    Returns:
        float32, shapes (n,), (a, a) and (b, b); a * b = n, a a power of two and as near to the root
        of n as it can be.
    """
    power = _power_of_two_in(n)
    a = _power_near_root(n, power)
    rest = n // power
    signs = np.ones(n) if seed is None else _signs(n, seed)
    left = _sylvester(a)
    right = np.kron(_sylvester(power // a), _cosine(rest))
    return _placed(signs, like), _placed(left, like), _placed(right, like)


def _power_near_root(n: int, power: int) -> int:
    """Return the largest power of two up to ``power`` that is not beyond the root of n."""
    a = 1
    while 2 * a <= power and (2 * a) ** 2 <= n:
        a *= 2
    return a


def rotate(x: Array, seed: int | None = None) -> Array:
    """Return ``x`` rotated along its last axis, float32, same shape.

    Equal to ``x @ hadamard(n, x, seed)``; O(n log n) by the fast Walsh-Hadamard transform.
    """
    xp = array_namespace(x)
    n = x.shape[-1]
    power = _power_of_two_in(n)
    rest = n // power
    x = xp.astype(x, xp.float32)
    if seed is not None:
        signs = _signs(n, seed)
        x = x * _placed(signs, x)
    rows = xp.reshape(x, (-1, power, rest))
    y = _walsh_hadamard(rows)
    if rest > 1:
        basis = _placed(_cosine(rest), x)
        y = xp.matmul(y, basis)
    norm = 1 / math.sqrt(power)
    return xp.reshape(y * norm, tuple(x.shape))


def _walsh_hadamard(y: Array) -> Array:
    """Return the transform along the middle axis, which has a power of two of elements."""
    xp = array_namespace(y)
    rows, power, rest = y.shape
    step = 1
    while step < power:
        # Elements that lie ``step`` apart become their sum and their difference.
        blocks = power // (2 * step)
        pairs = xp.reshape(y, (rows, blocks, 2, step, rest))
        first = pairs[:, :, 0, :, :]
        second = pairs[:, :, 1, :, :]
        y = xp.stack([first + second, first - second], axis=2)
        y = xp.reshape(y, (rows, power, rest))
        step *= 2
    return y


def _power_of_two_in(n: int) -> int:
    # A number and its negative share its lowest set bit alone.
    return n & -n


def _sylvester(n: int) -> np.ndarray:
    """Return the orthogonal Hadamard matrix of an order that is a power of two."""
    matrix = np.ones((1, 1))
    while len(matrix) < n:
        upper = [matrix, matrix]
        lower = [matrix, -matrix]
        matrix = np.block([upper, lower])
    return matrix / math.sqrt(n)


def _cosine(m: int) -> np.ndarray:
    """Return the orthogonal discrete cosine basis of order m (DCT-II)."""
    k = np.arange(m)[:, None]
    i = np.arange(m)[None, :]
    angle = math.pi * (2 * i + 1) * k / (2 * m)
    # The constant row has twice the energy of the others.
    norm = np.where(k == 0, math.sqrt(1 / m), math.sqrt(2 / m))
    return np.cos(angle) * norm


def _signs(n: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.choice([-1.0, 1.0], n)


def _placed(matrix: np.ndarray, like: Array) -> Array:
    xp = array_namespace(like)
    single = matrix.astype(np.float32)
    return xp.asarray(single, device=device(like))
