"""Matrix products in float, cut into pieces that threads share.

Bias and activation are applied while a piece is in the cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from octavo.adapters.numpy.graph import Array

from .activations import gelu_rows, sigmoid
from .parallel import spread
from .registry import Build, Kernel, compiled, operator

_PIECE = 1 << 23  # multiply-accumulates that are worth a piece of their own
_LINE = 16  # columns: float32 in a cache line; pieces along columns are whole lines

Product = Callable[[Array, Array, Array], object]
"""(a, b, out) -> out = a @ b, for a piece."""

Finish = Callable[[Array, slice], None]
"""Works in place on a finished piece; also given the columns that it covers."""


def _tanh(y: Array) -> None:
    np.tanh(y, out=y)


def _relu(y: Array) -> None:
    kind = y.dtype.type
    # numpy.clip runs in vector registers; numpy.maximum with a number takes five times as long.
    np.clip(y, kind(0), kind(np.inf), out=y)


def _sigmoid(y: Array) -> None:
    y[...] = sigmoid(y)


def _gelu_tanh(y: Array) -> None:
    gelu_rows(y, "tanh")


ACTIVATIONS: dict[str, Callable[[Array], object]] = {
    "Relu": _relu,
    "Tanh": _tanh,
    "Sigmoid": _sigmoid,
    "Gelu": gelu_rows,
    "GeluTanh": _gelu_tanh,
}
"""What may be fused into a product or a convolution, as attribute ``activation``.

Each works in place on (rows, channels).
"""


def activate(y: Array, activation: str) -> None:
    """Apply a fused activation in place."""
    if activation:
        ACTIVATIONS[activation](y)


def pieces_of(m: int, k: int, n: int, threads: int) -> tuple[int, bool]:
    """Return into how many pieces a product (m, k) @ (k, n) is cut, and whether along its rows."""
    # Two pieces a thread: a slow core takes fewer.
    most = 2 * threads if threads > 1 else 1
    worthwhile = max(1, m * k * n // _PIECE)
    count = min(most, worthwhile)
    if count < 2:
        return 1, True
    return count, m >= n


def product_pieces(
    a: Array, b: Array, out: Array, threads: int, product: Product, finish: Finish
) -> None:
    """Compute out = a @ b piece by piece.

    Args:
        a: (m, k).
        b: (k, n).
        out: (m, n).
        threads: Threads to share the pieces.
        product: Computes one piece.
        finish: Works in place on a finished piece.
    """
    m, k = a.shape
    n = b.shape[1]
    count, by_rows = pieces_of(m, k, n, threads)
    length = m if by_rows else n
    step = -(-length // count)
    if not by_rows:
        step += -step % _LINE

    def work(i: int) -> None:
        start = i * step
        part = slice(start, min(start + step, length))
        if by_rows:
            piece = out[part]
            product(a[part], b, piece)
            finish(piece, slice(0, n))
        else:
            piece = out[:, part]
            product(a, b[:, part], piece)
            finish(piece, part)

    spread(-(-length // step) if length else 0, work, threads)


def float_product(a: Array, b: Array, out: Array) -> None:
    """BLAS."""
    np.matmul(a, b, out=out)


def _nothing(piece: Array, columns: slice) -> None:
    """Finish a piece that is finished."""


@compiled("MatMul", empty=True)
def matmul(build: Build) -> Kernel:
    """ONNX MatMul.

    A stack times one matrix is one product; stacks are shared between threads.
    """
    return partial(_matmul, build.threads)


def _matmul(threads: int, a: Array, b: Array, *, empty: Any) -> Array:
    is_float = a.dtype.kind == "f" and a.dtype == b.dtype
    if not is_float or a.ndim < 2 or b.ndim < 2:
        # NumPy multiplies bfloat16 matrices into float32.
        return np.asarray(np.matmul(a, b)).astype(a.dtype, copy=False)
    m, k = a.shape[-2:]
    n = b.shape[-1]
    stack = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    out: Array = empty((*stack, m, n), a.dtype)
    if b.ndim == 2 and (a.ndim == 2 or a.flags.c_contiguous):
        rows, flat = a.reshape(-1, k), out.reshape(-1, n)
        product_pieces(rows, b, flat, threads, float_product, _nothing)
        return out
    is_small = math.prod(stack) * m * k * n < _PIECE
    if len(stack) < 1 or is_small or stack[0] == 1:
        np.matmul(a, b, out=out)
        return out
    left = np.broadcast_to(a, (*stack, m, k))
    right = np.broadcast_to(b, (*stack, k, n))
    spread(stack[0], lambda i: np.matmul(left[i], right[i], out=out[i]), threads)
    return out


@dataclass(frozen=True, slots=True)
class _Gemm:
    """The attributes of a Gemm node."""

    alpha: float
    beta: float
    trans_a: int
    trans_b: int
    activation: str
    threads: int


@compiled("Gemm", empty=True)
def gemm(build: Build) -> Kernel:
    """ONNX Gemm: alpha op(A) op(B) + beta C, with an activation fused where it was optimised.

    Leading dimensions of A beyond two are kept: a linear layer of a transformer is one Gemm.
    """
    how = _Gemm(
        build.get("alpha", 1.0),
        build.get("beta", 1.0),
        build.get("transA", 0),
        build.get("transB", 0),
        build.get("activation", ""),
        build.threads,
    )
    return partial(_gemm, how)


def _gemm(
    how: _Gemm, a: Array, b: Array, c: Array | None = None, *, empty: Any
) -> Array:
    left = a.T if how.trans_a else a
    right = b.T if how.trans_b else b
    if a.dtype.kind != "f" or b.dtype != a.dtype:
        y = _plain_gemm(left, right, c, how.alpha, how.beta)
        activate(y, how.activation)
        return y
    width = right.shape[1]
    out: Array = empty((*left.shape[:-1], width), a.dtype)
    added = None if c is None else _addend(c, how.beta)
    # A matrix C differs from row to row: it is added when all pieces are there.
    is_matrix = added is not None and added.ndim > 1
    # One number is added to every column.
    by_column = added is not None and added.ndim == 1 and added.shape[0] > 1

    def finish(y: Array, columns: slice) -> None:
        if how.alpha != 1.0:
            y *= y.dtype.type(how.alpha)
        if is_matrix:
            return
        if added is not None:
            y += added[columns] if by_column else added
        activate(y, how.activation)

    rows = left.reshape(-1, left.shape[-1])
    flat = out.reshape(-1, width)
    product_pieces(rows, right, flat, how.threads, float_product, finish)
    if is_matrix:
        flat += added
        activate(flat, how.activation)
    return np.asarray(out)


def _plain_gemm(
    a: Array, b: Array, c: Array | None, alpha: float, beta: float
) -> Array:
    """Gemm of integers, and of types that BLAS does not know."""
    product = np.matmul(a, b) * alpha
    y = np.asarray(product.astype(a.dtype))
    if c is None:
        return y
    total = y + c * c.dtype.type(beta)
    return np.asarray(total.astype(a.dtype))


def _addend(c: Array, beta: float) -> Array:
    """Return beta C; a matrix of one row as a vector."""
    scaled = c if beta == 1.0 else c * c.dtype.type(beta)
    is_one_row = scaled.ndim > 1 and scaled.shape[0] == 1
    return scaled[0] if is_one_row else scaled


@operator("Einsum")
def einsum(*xs: Array, equation: str) -> Any:
    """ONNX Einsum: Einstein's summation."""
    kind = xs[0].dtype
    is_optimised = len(xs) > 1
    if kind.kind in "fiub":
        return np.einsum(equation, *xs, optimize=is_optimised)
    # NumPy's einsum does not know the types of ml_dtypes.
    wide = [x.astype(np.float32) for x in xs]
    y = np.einsum(equation, *wide, optimize=is_optimised)
    return y.astype(kind)
