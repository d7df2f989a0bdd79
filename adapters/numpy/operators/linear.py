"""Matrix products in float."""

from __future__ import annotations

from typing import Any

import numpy as np

from .registry import Build, Kernel, compiled, operator

ACTIVATIONS = ("Relu",)
"""What may be fused into a product or a convolution, as attribute ``activation``."""


def activate(y: np.ndarray, activation: str) -> None:
    """Apply a fused activation in place."""
    if activation == "Relu":
        np.maximum(y, y.dtype.type(0), out=y)


@operator("MatMul", out=True)
def matmul(a: np.ndarray, b: np.ndarray, *, out: Any = None) -> Any:
    """NumPy's matmul, with a product of a stack and one matrix flattened to a single BLAS call."""
    if b.ndim == 2 and a.ndim > 2 and a.flags.c_contiguous and a.dtype == b.dtype:
        shape = (*a.shape[:-1], b.shape[1])
        flat = None if out is None else out.reshape(-1, b.shape[1])
        return np.matmul(a.reshape(-1, a.shape[-1]), b, out=flat).reshape(shape).astype(a.dtype, copy=False)
    # NumPy multiplies bfloat16 matrices into float32.
    return np.matmul(a, b, out=out).astype(a.dtype, copy=False)


@compiled("Gemm")
def gemm(build: Build) -> Kernel:
    """alpha op(A) op(B) + beta C, with an activation fused where the graph was optimised."""
    alpha, beta = build.get("alpha", 1.0), build.get("beta", 1.0)
    trans_a, trans_b = build.get("transA", 0), build.get("transB", 0)
    activation = build.get("activation", "")

    def run(a: np.ndarray, b: np.ndarray, c: np.ndarray | None = None) -> np.ndarray:
        # Leading dimensions of A beyond two are kept: a linear layer of a transformer is one Gemm.
        y: np.ndarray = matmul(a.T if trans_a else a, b.T if trans_b else b)
        if alpha != 1.0:
            y *= y.dtype.type(alpha)
        if c is not None:
            y += c if beta == 1.0 else c * y.dtype.type(beta)
        activate(y, activation)
        return y

    return run


@operator("Einsum")
def einsum(*xs: np.ndarray, equation: str) -> Any:
    """Einstein's summation."""
    kind = xs[0].dtype
    if kind.kind not in "fiub":
        return np.einsum(equation, *(x.astype(np.float32) for x in xs), optimize=len(xs) > 1).astype(kind)
    return np.einsum(equation, *xs, optimize=len(xs) > 1)
