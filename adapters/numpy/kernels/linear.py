"""Matrix products in float: rows or columns shared between threads, bias and activation applied while a piece is in the cache."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .elementwise import gelu_rows, sigmoid
from .parallel import spread
from .registry import Build, Kernel, compiled, operator

_PIECE = 1 << 23  # multiply-accumulates that are worth a piece of their own

Product = Callable[[np.ndarray, np.ndarray, np.ndarray], object]
"""(a, b, out) -> out = a @ b, for a piece."""


def _tanh(y: np.ndarray) -> None:
    np.tanh(y, out=y)


def _relu(y: np.ndarray) -> None:
    # numpy.clip runs in vector registers; numpy.maximum with a number takes five times as long.
    np.clip(y, y.dtype.type(0), y.dtype.type(np.inf), out=y)


def _sigmoid(y: np.ndarray) -> None:
    y[...] = sigmoid(y)


ACTIVATIONS: dict[str, Callable[[np.ndarray], object]] = {
    "Relu": _relu,
    "Tanh": _tanh,
    "Sigmoid": _sigmoid,
    "Gelu": gelu_rows,
    "GeluTanh": lambda y: gelu_rows(y, "tanh"),
}
"""What may be fused into a product or a convolution, as attribute ``activation``: in place on (rows, channels)."""


def activate(y: np.ndarray, activation: str) -> None:
    """Apply a fused activation in place."""
    if activation:
        ACTIVATIONS[activation](y)


def pieces_of(m: int, k: int, n: int, threads: int) -> tuple[int, bool]:
    """Return into how many pieces a product (m, k) @ (k, n) is cut, and whether along its rows."""
    count = min(2 * threads if threads > 1 else 1, max(1, m * k * n // _PIECE))
    return (1, True) if count < 2 else (count, m >= n)


def product_pieces(
    a: np.ndarray,
    b: np.ndarray,
    out: np.ndarray,
    threads: int,
    product: Product,
    finish: Callable[[np.ndarray, slice], None],
) -> None:
    """Compute out = a @ b piece by piece.

    Args:
        a: (m, k).
        b: (k, n).
        out: (m, n).
        threads: Threads to share the pieces.
        product: Computes one piece.
        finish: Works in place on a finished piece; also given the columns that it covers.
    """
    m, k, n = a.shape[0], a.shape[1], b.shape[1]
    count, by_rows = pieces_of(m, k, n, threads)
    length = m if by_rows else n
    step = -(-length // count)
    step += -step % 16 if not by_rows else 0

    def work(i: int) -> None:
        part = slice(i * step, min((i + 1) * step, length))
        if by_rows:
            product(a[part], b, out[part])
            finish(out[part], slice(0, n))
        else:
            product(a, b[:, part], out[:, part])
            finish(out[:, part], part)

    spread(-(-length // step) if length else 0, work, threads)


def float_product(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
    """BLAS."""
    np.matmul(a, b, out=out)


@compiled("MatMul", empty=True)
def matmul(build: Build) -> Kernel:
    """NumPy's matmul; a stack times one matrix is one product; stacks are shared between threads."""
    threads = build.threads

    def run(a: np.ndarray, b: np.ndarray, *, empty: Any) -> np.ndarray:
        if a.dtype != b.dtype or a.dtype.kind != "f" or a.ndim < 2 or b.ndim < 2:
            # NumPy multiplies bfloat16 matrices into float32.
            return np.asarray(np.matmul(a, b)).astype(a.dtype, copy=False)
        m, k, n = a.shape[-2], a.shape[-1], b.shape[-1]
        stack = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        out: np.ndarray = empty((*stack, m, n), a.dtype)
        if b.ndim == 2 and (a.ndim == 2 or a.flags.c_contiguous):
            product_pieces(
                a.reshape(-1, k),
                b,
                out.reshape(-1, n),
                threads,
                float_product,
                lambda y, columns: None,
            )
            return out
        whole = math.prod(stack) * m * k * n
        if len(stack) < 1 or whole < _PIECE or stack[0] == 1:
            np.matmul(a, b, out=out)
            return out
        left, right = np.broadcast_to(a, (*stack, m, k)), np.broadcast_to(b, (*stack, k, n))
        spread(stack[0], lambda i: np.matmul(left[i], right[i], out=out[i]), threads)
        return out

    return run


@compiled("Gemm", empty=True)
def gemm(build: Build) -> Kernel:
    """alpha op(A) op(B) + beta C, with an activation fused where the graph was optimised."""
    alpha, beta = build.get("alpha", 1.0), build.get("beta", 1.0)
    trans_a, trans_b = build.get("transA", 0), build.get("transB", 0)
    activation = build.get("activation", "")

    def run(a: np.ndarray, b: np.ndarray, c: np.ndarray | None = None, *, empty: Any) -> np.ndarray:
        # Leading dimensions of A beyond two are kept: a linear layer of a transformer is one Gemm.
        left, right = a.T if trans_a else a, b.T if trans_b else b
        if a.dtype.kind != "f" or b.dtype != a.dtype:
            # Integers, and types that BLAS does not know.
            y = np.asarray((np.matmul(left, right) * alpha).astype(a.dtype))
            y = y if c is None else np.asarray((y + c * c.dtype.type(beta)).astype(a.dtype))
            activate(y, activation)
            return y
        shape = (*left.shape[:-1], right.shape[1])
        out = empty(shape, a.dtype)
        scaled = None if c is None else c if beta == 1.0 else c * c.dtype.type(beta)
        if scaled is not None and scaled.ndim > 1 and scaled.shape[0] == 1:
            scaled = scaled[0]
        rowwise = scaled is None or scaled.ndim < 2

        def finish(y: np.ndarray, columns: slice) -> None:
            if alpha != 1.0:
                y *= y.dtype.type(alpha)
            if scaled is not None and rowwise:
                y += scaled[columns] if scaled.ndim and scaled.shape[0] > 1 else scaled
            if rowwise:
                activate(y, activation)

        flat = out.reshape(-1, shape[-1])
        product_pieces(
            left.reshape(-1, left.shape[-1]), right, flat, build.threads, float_product, finish
        )
        if not rowwise:
            flat += scaled
            activate(flat, activation)
        return np.asarray(out)

    return run


@operator("Einsum")
def einsum(*xs: np.ndarray, equation: str) -> Any:
    """Einstein's summation."""
    kind = xs[0].dtype
    if kind.kind not in "fiub":
        return np.einsum(
            equation, *(x.astype(np.float32) for x in xs), optimize=len(xs) > 1
        ).astype(kind)
    return np.einsum(equation, *xs, optimize=len(xs) > 1)
