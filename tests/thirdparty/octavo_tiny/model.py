"""The framework: a chain of affine layers with ReLU between them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class Chain:
    """weights[i] has shape (outputs, inputs), biases[i] (outputs,); float32."""

    weights: list[np.ndarray]
    biases: list[np.ndarray]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        for i, (w, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = x @ w.T + b
            if i + 1 < len(self.weights):
                x = np.maximum(x, 0)
        return x
