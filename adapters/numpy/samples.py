"""Graphs of one op, of the size that models have.

What is timed when somebody asks how fast schemes are.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .graph import Array, Builder, Graph

Sample = tuple[Graph, tuple[Array, ...]]


def sample(kind: str) -> Sample | None:
    """Return a graph with one op of a type and a batch for it.

    None for types that have no integer kernel here.
    """
    make = _SAMPLES.get(kind)
    return make(np.random.default_rng(0)) if make else None


def _normal(random: np.random.Generator, *shape: int) -> Array:
    return random.normal(size=shape).astype(np.float32)


def _linear(random: np.random.Generator) -> Sample:
    b = Builder()
    x = b.input("x", (None, 512))
    weight = _normal(random, 512, 512)
    bias = _normal(random, 512)
    graph = b.graph(b.Gemm(x, weight, bias, name="sample"))
    return graph, (_normal(random, 64, 512),)


def _conv(random: np.random.Generator) -> Sample:
    b = Builder()
    x = b.input("x", (None, 64, 28, 28))
    weight = _normal(random, 64, 64, 3, 3)
    bias = _normal(random, 64)
    graph = b.graph(b.Conv(x, weight, bias, name="sample", pads=(1, 1, 1, 1)))
    return graph, (_normal(random, 1, 64, 28, 28),)


def _embedding(random: np.random.Generator) -> Sample:
    b = Builder()
    table = b.constant(_normal(random, 4096, 256), "sample.table")
    indices = b.input("x", (None, 64), "int64")
    graph = b.graph(b.Gather(table, indices, name="sample"))
    return graph, (random.integers(0, 4096, (8, 64)),)


_SAMPLES: dict[str, Callable[[np.random.Generator], Sample]] = {
    "linear": _linear,
    "conv": _conv,
    "embedding": _embedding,
}
