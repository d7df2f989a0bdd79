"""The tiny third-party backend, as tests use it in this process: a trained chain, its data, a host
that knows the backend."""

from __future__ import annotations

import sys
import tomllib
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

from octavo.core.contract.plugins import PluginHost

HERE = Path(__file__).parent / "thirdparty"
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))

from octavo_tiny import backend as backend  # noqa: E402
from octavo_tiny.backend import (  # noqa: E402
    TinyAdapter as TinyAdapter,
)
from octavo_tiny.backend import (  # noqa: E402
    TinyCandidate as TinyCandidate,
)
from octavo_tiny.backend import (  # noqa: E402
    TinySession as TinySession,
)
from octavo_tiny.model import Chain  # noqa: E402


@lru_cache(1)
def digits() -> tuple[np.ndarray, np.ndarray]:
    x, y = load_digits(return_X_y=True)
    return (x / 16).astype(np.float32), y


@lru_cache(1)
def _fitted() -> MLPClassifier:
    x, y = digits()
    return MLPClassifier(
        (48, 32, 24), max_iter=60, random_state=0, early_stopping=True
    ).fit(x[:1200], y[:1200])


def chain() -> Chain:
    net = _fitted()
    return Chain(
        [w.T.astype(np.float32).copy() for w in net.coefs_],
        [b.astype(np.float32).copy() for b in net.intercepts_],
    )


def calibration() -> list[np.ndarray]:
    """Return batches of their own: a test may try what happens to one that is written to."""
    x, _ = digits()
    return [x[i : i + 64].copy() for i in range(0, 256, 64)]


def accuracy(model: object) -> float:
    x, y = digits()
    return float((model(x[1200:]).argmax(1) == y[1200:]).mean())  # type: ignore[operator]


def nearness(model: object) -> float:
    """How near a model's outputs are to the float model's: nothing but float itself reaches 1."""
    x, _ = digits()
    outputs = np.asarray(model(x[1200:]))  # type: ignore[operator]
    return float(1.0 - np.square(outputs - np.asarray(chain()(x[1200:]))).mean())


def host() -> PluginHost:
    table = tomllib.loads(files("octavo").joinpath("plugins.toml").read_text())
    table["builtin"]["tiny"] = {"module": "octavo_tiny"}
    return PluginHost(table, third_party=False)
