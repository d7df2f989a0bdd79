"""Tune a fitted scikit-learn network; the result needs NumPy only: `python -m
examples.tune_numpy`."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

import octavo


def main() -> octavo.Result:
    x, y = load_digits(return_X_y=True)
    x = x.astype(np.float32)
    net = MLPClassifier((128, 64), max_iter=40, random_state=0).fit(x[:1200], y[:1200])

    def score(model) -> octavo.Evaluation:  # type: ignore[no-untyped-def]
        """Score a candidate; the score of each sample lets the search end a hopeless evaluation
        early."""
        right = (np.asarray(model(x[1200:])).argmax(1) == y[1200:]).astype(float)
        return octavo.Evaluation(right.mean(), per_sample=right)

    with octavo.ProgressDisplay() as show:
        result = octavo.autotune(
            net,
            score,
            calibration=x[:256],
            tolerance=0.01,
            minimise="size",
            callbacks=[show],
        )
    result.save("out/numpy")

    again = octavo.load("out/numpy")
    print(f"reloaded: {score(again).value:.4f}")
    return result


if __name__ == "__main__":
    main()
