"""Models for the tests of the LiteRT backend: random weights, and digits learned in seconds."""

from __future__ import annotations

import numpy as np

from tests.adapters.litert.builder import RELU, RELU6, Builder


def _weights(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Return weights that keep the size of what they multiply."""
    fan = int(np.prod(shape[1:])) if len(shape) > 1 else 16
    return (rng.normal(size=shape) / np.sqrt(fan)).astype(np.float32)


def cnn() -> bytes:
    """A residual, depthwise-separable network with every op type that images have."""
    rng = np.random.default_rng(0)
    b = Builder()
    x = b.input((-1, 13, 13, 3), "images")
    y = b.conv(x, _weights(rng, 8, 3, 3, 3), _weights(rng, 8), "stem", RELU, stride=2)
    depth = (rng.normal(size=(1, 3, 3, 8)) / 3).astype(np.float32)
    z = b.depthwise(y, depth, _weights(rng, 8), "depthwise", RELU6)
    z = b.conv(z, _weights(rng, 8, 1, 1, 8), _weights(rng, 8), "pointwise")
    y = b.add(y, z, "residual", RELU)
    y = b.pool("MAX", y, 2, "max")
    z = b.conv(y, _weights(rng, 8, 3, 3, 8), _weights(rng, 8), "branch", RELU)
    y = b.op(
        "CONCATENATION",
        [y, z],
        (-1, 3, 3, 16),
        "concat",
        "ConcatenationOptions",
        axis=3,
    )
    y = b.pool("AVERAGE", y, 2, "average")
    y = b.mean(y, "gap")
    y = b.dense(y, _weights(rng, 10, 16), _weights(rng, 10), "head")
    return b.bytes(b.softmax(y, "probabilities"))


def mlp() -> bytes:
    """Linear layers, one of which is used twice and one without a bias."""
    rng = np.random.default_rng(1)
    b = Builder()
    x = b.input((-1, 24))
    y = b.dense(x, _weights(rng, 32, 24), _weights(rng, 32), "first", RELU)
    y = b.dense(y, _weights(rng, 32, 32), None, "second", RELU)
    return b.bytes(b.dense(y, _weights(rng, 5, 32), _weights(rng, 5), "last"))


def transformer() -> bytes:
    """One head of attention with a feed-forward part, over 6 tokens of 16 numbers."""
    rng = np.random.default_rng(2)
    b = Builder()
    x = b.input((-1, 6, 16), "tokens")
    q, k, v = (
        b.dense(x, _weights(rng, 16, 16), _weights(rng, 16), name) for name in "qkv"
    )
    scores = b.op(
        "BATCH_MATMUL", [q, k], (-1, 6, 6), "scores", "BatchMatMulOptions", adjY=True
    )
    weights = b.softmax(scores, "weights")
    mixed = b.op(
        "BATCH_MATMUL", [weights, v], (-1, 6, 16), "mixed", "BatchMatMulOptions"
    )
    y = b.add(x, b.dense(mixed, _weights(rng, 16, 16), _weights(rng, 16), "o"), "sum")
    h = b.dense(y, _weights(rng, 32, 16), _weights(rng, 32), "up")
    h = b.op("GELU", [h], (-1, 6, 32), "gelu")
    h = b.dense(h, _weights(rng, 16, 32), _weights(rng, 16), "down")
    return b.bytes(b.add(y, h, "out"))
