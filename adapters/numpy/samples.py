"""Graphs of one op, of the size that models have: what is timed when somebody asks how fast schemes are."""

from __future__ import annotations

import numpy as np

from .graph import Builder, Graph


def sample(kind: str) -> tuple[Graph, tuple[np.ndarray, ...]] | None:
    """Return a graph with one op of a type and a batch for it; None for types that have no integer kernel here."""
    random = np.random.default_rng(0)

    def array(*shape: int) -> np.ndarray:
        return random.normal(size=shape).astype(np.float32)

    b = Builder()
    if kind == "linear":
        return b.graph(
            b.Gemm(b.input("x", (None, 512)), array(512, 512), array(512), name="sample")
        ), (array(64, 512),)
    if kind == "conv":
        x = b.input("x", (None, 64, 28, 28))
        return b.graph(
            b.Conv(x, array(64, 64, 3, 3), array(64), name="sample", pads=(1, 1, 1, 1))
        ), (array(1, 64, 28, 28),)
    if kind == "embedding":
        rows = b.Gather(
            b.constant(array(4096, 256), "sample.table"),
            b.input("x", (None, 64), "int64"),
            name="sample",
        )
        return b.graph(rows), (random.integers(0, 4096, (8, 64)),)
    return None
