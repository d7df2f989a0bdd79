"""Models for the tests of the LiteRT backend: random weights, and digits learned in seconds."""

from __future__ import annotations

import numpy as np
from ai_edge_litert.interpreter import Interpreter

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
    z = b.depthwise(y, depth, _weights(rng, 8), "depthwise", RELU)
    z = b.conv(z, _weights(rng, 8, 1, 1, 8), _weights(rng, 8), "pointwise")
    y = b.add(y, z, "residual", RELU6)
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


def digits() -> tuple[bytes, np.ndarray, np.ndarray]:
    """A separable network that reads digits, with images and labels to score it by.

    Its convolutions are drawn, and what reads their features is fitted. The channels between the
    depthwise and the pointwise layer have sizes a thousand apart, as batch norms may leave them:
    that is nothing to a float model, and much to one scale for all of them.
    """
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x = (images / 16).reshape(-1, 8, 8, 1).astype(np.float32)
    run = Interpreter(
        model_content=_separable(np.eye(FEATURES, dtype=np.float32), None)
    )
    entry = run.get_input_details()[0]
    run.resize_tensor_input(entry["index"], x.shape)
    run.allocate_tensors()
    run.set_tensor(entry["index"], x)
    run.invoke()
    features = run.get_tensor(run.get_output_details()[0]["index"])
    train = np.hstack([features[:1300], np.ones((1300, 1), np.float32)]).astype(float)
    ridge = train.T @ train + 0.1 * np.eye(FEATURES + 1)
    fitted = np.linalg.solve(ridge, train.T @ np.eye(10)[labels[:1300]]).T
    weight, bias = fitted[:, :-1].astype(np.float32), fitted[:, -1].astype(np.float32)
    return _separable(weight, bias), x[1300:], labels[1300:]


FEATURES = 4 * 4 * 32


def _separable(weight: np.ndarray, bias: np.ndarray | None) -> bytes:
    rng = np.random.default_rng(0)
    sizes = np.geomspace(1.0, 1000.0, 16).astype(np.float32)
    b = Builder()
    x = b.input((-1, 8, 8, 1), "images")
    y = b.conv(x, _weights(rng, 16, 3, 3, 1), _weights(rng, 16) / 4, "stem", RELU)
    depth = (rng.normal(size=(1, 3, 3, 16)) / 3).astype(np.float32)
    shift = _weights(rng, 16) / 4
    y = b.depthwise(y, depth * sizes, shift * sizes, "depthwise", RELU)
    point = _weights(rng, 32, 1, 1, 16) / sizes
    y = b.conv(y, point, _weights(rng, 32) / 4, "pointwise", RELU)
    y = b.reshape(b.pool("MAX", y, 2, "max"), (-1, FEATURES), "flat")
    return b.bytes(b.dense(y, weight, bias, "head"))
