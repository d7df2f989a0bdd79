"""Hadamard rotation: spread outliers over all channels.

Paper: Ashkboos et al. 2024, "QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs", section 3: x W^T = (x Q) (W Q)^T for any
orthogonal Q. A rotation mixes channels, so it is no choice of factors for a rescale group: these functions rotate
the weights of both sides where everything between them is linear, or rotate an activation before its product.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from ..numerics.affine import Array


def hadamard(n: int, like: Array, seed: int | None = None) -> Array:
    """Return an orthogonal matrix with entries of nearly one size: float32, shape (n, n), in the namespace of ``like``.

    n = 2**k * m, m odd: Sylvester's Hadamard matrix of order 2**k times (Kronecker) a discrete cosine basis of order m, which is 1
    for powers of two. With a seed, its rows' signs are drawn at random (the randomised Hadamard matrix of QuaRot).
    """
    xp = array_namespace(like)
    power = n & -n
    matrix = np.ones((1, 1))
    while len(matrix) < power:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    m = n // power
    k, i = np.arange(m)[:, None], np.arange(m)[None, :]
    cosine = np.cos(math.pi * (2 * i + 1) * k / (2 * m)) * np.where(k == 0, math.sqrt(1 / m), math.sqrt(2 / m))
    matrix = np.kron(matrix / math.sqrt(power), cosine)
    if seed is not None:
        matrix = matrix * np.random.default_rng(seed).choice([-1.0, 1.0], n)[:, None]
    return xp.asarray(matrix.astype(np.float32), device=device(like))


def rotate(x: Array, seed: int | None = None) -> Array:
    """Return ``x`` rotated along its last axis, float32, same shape: O(n log n) by the fast Walsh-Hadamard transform.

    Equal to ``x @ hadamard(n, x, seed)``.
    """
    xp = array_namespace(x)
    n = x.shape[-1]
    power = n & -n
    x = xp.astype(x, xp.float32)
    if seed is not None:
        signs = np.random.default_rng(seed).choice([-1.0, 1.0], n).astype(np.float32)
        x = x * xp.asarray(signs, device=device(x))
    y = xp.reshape(x, (-1, power, n // power))
    step = 1
    while step < power:
        pairs = xp.reshape(y, (y.shape[0], power // (2 * step), 2, step, n // power))
        first, second = pairs[:, :, 0, :, :], pairs[:, :, 1, :, :]
        y = xp.reshape(xp.stack([first + second, first - second], axis=2), (y.shape[0], power, n // power))
        step *= 2
    if n > power:
        y = xp.matmul(y, hadamard(n // power, x))
    return xp.reshape(y * (1 / math.sqrt(power)), tuple(x.shape))


def rotated_pair(
    producer: Array, bias: Array | None, consumers: list[Array], seed: int | None = 0
) -> tuple[Array, Array | None, list[Any]]:
    """Rotate the value between a linear op and the linear ops that read it, nothing but it between them.

    Args:
        producer: float32, shape (channels, features): its output is rotated.
        bias: float32, shape (channels,), or None.
        consumers: float32, shape (outputs, channels) each.
        seed: Of the rotation.

    Returns:
        The three, rotated; the function they compute together is the same.
    """
    xp = array_namespace(producer)
    turned = xp.matrix_transpose(rotate(xp.matrix_transpose(producer), seed))
    return turned, rotate(bias, seed) if bias is not None else None, [rotate(w, seed) for w in consumers]
