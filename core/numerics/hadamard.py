"""Hadamard rotation: an orthogonal matrix with entries of one size spreads an outlier over all channels.

Paper: Ashkboos et al. 2024, "QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs", section 3 and appendix A.
"""

from __future__ import annotations

import math

import numpy as np
from array_api_compat import array_namespace, device

from .affine import Array


def hadamard(n: int, like: Array, seed: int | None = None) -> Array:
    """Return an orthogonal matrix with entries of nearly one size: float32, shape (n, n), in the namespace of ``like``.

    n = 2**k * m, m odd: Sylvester's Hadamard matrix of order 2**k times (Kronecker) a discrete cosine basis of order m, which is 1
    for powers of two. With a seed, its rows' signs are drawn at random (the randomised Hadamard matrix of QuaRot).
    """
    power = n & -n
    matrix = np.kron(_sylvester(power), _cosine(n // power))
    if seed is not None:
        matrix = matrix * _signs(n, seed)[:, None]
    return _placed(matrix, like)


def hadamard_parts(n: int, like: Array, seed: int | None = None) -> tuple[Array, Array, Array]:
    """Return (signs, left, right): with X = reshape(x * signs, (a, b)), ``x @ hadamard(n, x, seed)`` is the flattened left X right.

    Two small matrices where a runtime has products and no fast transform: n (a + b) multiply-adds a row in place of n * n.

    Returns:
        float32, shapes (n,), (a, a) and (b, b); a * b = n, a a power of two and as near to the root of n as it can be.
    """
    power = n & -n
    a = 1
    while 2 * a <= power and (2 * a) ** 2 <= n:
        a *= 2
    signs = np.ones(n) if seed is None else _signs(n, seed)
    right = np.kron(_sylvester(power // a), _cosine(n // power))
    return _placed(signs, like), _placed(_sylvester(a), like), _placed(right, like)


def rotate(x: Array, seed: int | None = None) -> Array:
    """Return ``x`` rotated along its last axis, float32, same shape: O(n log n) by the fast Walsh-Hadamard transform.

    Equal to ``x @ hadamard(n, x, seed)``.
    """
    xp = array_namespace(x)
    n = x.shape[-1]
    power = n & -n
    x = xp.astype(x, xp.float32)
    if seed is not None:
        x = x * _placed(_signs(n, seed), x)
    y = xp.reshape(x, (-1, power, n // power))
    step = 1
    while step < power:
        pairs = xp.reshape(y, (y.shape[0], power // (2 * step), 2, step, n // power))
        first, second = pairs[:, :, 0, :, :], pairs[:, :, 1, :, :]
        y = xp.reshape(
            xp.stack([first + second, first - second], axis=2), (y.shape[0], power, n // power)
        )
        step *= 2
    if n > power:
        y = xp.matmul(y, _placed(_cosine(n // power), x))
    return xp.reshape(y * (1 / math.sqrt(power)), tuple(x.shape))


def _sylvester(n: int) -> np.ndarray:
    """Return the orthogonal Hadamard matrix of an order that is a power of two."""
    matrix = np.ones((1, 1))
    while len(matrix) < n:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix / math.sqrt(n)


def _cosine(m: int) -> np.ndarray:
    """Return the orthogonal discrete cosine basis of order m (DCT-II)."""
    k, i = np.arange(m)[:, None], np.arange(m)[None, :]
    return np.cos(math.pi * (2 * i + 1) * k / (2 * m)) * np.where(
        k == 0, math.sqrt(1 / m), math.sqrt(2 / m)
    )


def _signs(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).choice([-1.0, 1.0], n)


def _placed(matrix: np.ndarray, like: Array) -> Array:
    return array_namespace(like).asarray(matrix.astype(np.float32), device=device(like))
