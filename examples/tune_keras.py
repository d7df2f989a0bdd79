"""Tune a Keras model for LiteRT: `make demo-keras`, or, where `octavo[tensorflow]` and scikit-learn
are installed, `python -m examples.tune_keras`.

A small convolution network (residual, separable, batch norm) learns scikit-learn's digits in
seconds. TensorFlow converts it once; octavo quantizes what that gives. The result is a `.tflite`
file, which plain LiteRT loads without TensorFlow and without octavo.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import octavo

# TensorFlow reads it once, when it is imported: it would tell of its own instructions otherwise.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

SETTINGS = {
    "max_trials": 8,
    "accuracy": {"metric": "accuracy", "tolerance": 0.01},
    "objective": {"minimise": [{"kind": "latency", "batch_size": 32}, "size"]},
}


@dataclass(frozen=True)
class Digits:
    """Images float32 (n, 32, 32, 1) in [0, 1], as Keras lays them out, and labels int64 (n,)."""

    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray

    def accuracy(self, model: Any) -> octavo.Evaluation:
        """Score what takes images and returns a row of ten numbers for each."""
        rows = np.asarray(model(self.test_x))
        right = (rows.argmax(1) == self.test_y).astype(float)
        return octavo.Evaluation(right.mean(), per_sample=right)


def data() -> Digits:
    """Return the digits, four times as large as they are, so that convolutions do real work."""
    images, labels = load_digits(return_X_y=True)
    large = np.kron(images.reshape(-1, 8, 8, 1), np.ones((1, 4, 4, 1))) / 16
    train_x, test_x, train_y, test_y = train_test_split(
        large.astype(np.float32),
        labels.astype(np.int64),
        test_size=0.4,
        random_state=0,
        stratify=labels,
    )
    return Digits(train_x, train_y, test_x, test_y)


def network() -> Any:
    """Return an untrained Keras model: a stem, a residual block, two separable convolutions."""
    from keras import Input, Model, layers, utils

    utils.set_random_seed(0)

    def normed(x: Any, layer: Any, *, active: bool = True) -> Any:
        # Means that follow within some steps: the training has about a hundred.
        norm = layers.BatchNormalization(momentum=0.8, name=f"{layer.name}_norm")
        x = norm(layer(x))
        return layers.ReLU()(x) if active else x

    def conv(channels: int, name: str, strides: int = 1) -> Any:
        return layers.Conv2D(
            channels, 3, strides, padding="same", use_bias=False, name=name
        )

    def separable(channels: int, name: str, strides: int = 1) -> Any:
        return layers.SeparableConv2D(
            channels, 3, strides, padding="same", use_bias=False, name=name
        )

    image = Input((32, 32, 1), name="image")
    x = normed(image, conv(24, "stem"))
    x = normed(x, conv(48, "narrow", strides=2))
    y = normed(x, conv(48, "block_first"))
    y = normed(y, conv(48, "block_second"), active=False)
    x = layers.ReLU()(layers.Add(name="residual")([x, y]))
    x = normed(x, separable(96, "wide"))
    x = normed(x, separable(96, "deep", strides=2))
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return Model(image, layers.Dense(10, name="classifier")(x))


def trained(digits: Digits, model: Any, epochs: int = 6) -> Any:
    """Return a model, trained: the network takes some fifteen seconds on two cores."""
    import keras

    steps = epochs * -(-len(digits.train_x) // 64)
    rates = keras.optimizers.schedules.CosineDecay(
        5e-4, steps, warmup_target=5e-3, warmup_steps=steps // 4
    )
    model.compile(
        keras.optimizers.AdamW(rates),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    model.fit(digits.train_x, digits.train_y, batch_size=64, epochs=epochs, verbose=0)
    return model


def main(folder: Path = Path("out/keras")) -> octavo.Result:
    """Train, tune, print the table, save, load again."""
    start = time.perf_counter()
    digits = data()
    print(f"training a Keras network on {len(digits.train_x)} images ...", flush=True)
    model = trained(digits, network())
    float_score = digits.accuracy(model).value
    with octavo.ProgressDisplay() as show:
        result = octavo.autotune(
            model,
            digits.accuracy,
            digits.train_x[:128],
            SETTINGS,
            callbacks=(show,),
        )
    print(result.summary())
    for name, line in result.ledger.items():
        print(f"{name:28} {line.applied}  {line.reason}")
    saved = result.save(folder)
    again = digits.accuracy(octavo.load(saved)).value
    print(f"Keras {float_score:.4f}; loaded again from {saved}: {again:.4f}")
    print(f"{time.perf_counter() - start:.0f} s")
    return result


if __name__ == "__main__":
    sys.exit(0 if main().goal_met else 3)
