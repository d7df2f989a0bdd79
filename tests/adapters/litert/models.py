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
    """A separable network trained on the digits in seconds, with images and labels to score by.

    The channels between its depthwise and its pointwise layer have sizes a thousand apart, as batch
    norms leave them: that is nothing to a float model, and much to one scale for all of them.
    """
    import torch
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x = (images / 16).reshape(-1, 1, 8, 8).astype(np.float32)
    torch.manual_seed(0)
    layers = torch.nn.Sequential(
        torch.nn.Conv2d(1, 16, 3, padding=1), torch.nn.ReLU(),
        torch.nn.Conv2d(16, 16, 3, padding=1, groups=16), torch.nn.ReLU(),
        torch.nn.Conv2d(16, 32, 1), torch.nn.ReLU(),
        torch.nn.MaxPool2d(2), torch.nn.Conv2d(32, 32, 3, padding=1), torch.nn.ReLU(),
        torch.nn.Flatten(2), torch.nn.AdaptiveAvgPool1d(1), torch.nn.Flatten(),
        torch.nn.Linear(32, 10),
    )  # fmt: skip
    train_x, train_y = torch.tensor(x[:1300]), torch.tensor(labels[:1300])
    optimizer = torch.optim.Adam(layers.parameters(), 5e-3)
    for epoch in range(25):
        for part in torch.randperm(1300, generator=torch.manual_seed(epoch)).split(100):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(
                layers(train_x[part]), train_y[part]
            )
            loss.backward()
            optimizer.step()
    held = {name: value.detach().numpy() for name, value in layers.named_parameters()}
    sizes = np.geomspace(1.0, 1000.0, 16).astype(np.float32)
    held["2.weight"] = held["2.weight"] * sizes[:, None, None, None]
    held["2.bias"] = held["2.bias"] * sizes
    held["4.weight"] = held["4.weight"] / sizes[None, :, None, None]
    return _separable(held), x[1300:].transpose(0, 2, 3, 1).copy(), labels[1300:]


def _separable(held: dict[str, np.ndarray]) -> bytes:
    """Write the network of :func:`digits` with channels last."""
    b = Builder()

    def conv(y: int, at: str) -> int:
        weight = held[f"{at}.weight"].transpose(0, 2, 3, 1)
        return b.conv(y, weight, held[f"{at}.bias"], f"conv_{at}", RELU)

    y = conv(b.input((-1, 8, 8, 1), "images"), "0")
    depth = held["2.weight"].transpose(1, 2, 3, 0)
    y = conv(b.depthwise(y, depth, held["2.bias"], "depthwise", RELU), "4")
    y = b.mean(conv(b.pool("MAX", y, 2, "max"), "7"), "gap")
    return b.bytes(b.dense(y, held["12.weight"], held["12.bias"], "head"))
