"""What a trial costs beyond its evaluation and measurement. Run: python -m benchmarks.overhead

Bar (issue of the main job): at most 10 % of one evaluation of 719 samples or 30 ms, whichever is
more, on the digits network; numpy and torch.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import octavo
from examples import digits

TRIALS = 12


class Clock(octavo.Progress):
    """Wall time between the ends of two trials."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def started(
        self, baseline: octavo.Trial, goal: str, max_trials: int, space_size: int
    ) -> None:
        """Start the clock."""
        self.ends.append(time.perf_counter())

    def finished(
        self, trial: octavo.Trial, best: octavo.Trial | None, seconds_left: float | None
    ) -> None:
        """Take the time."""
        self.ends.append(time.perf_counter())


def measure(
    name: str,
    model: Any,
    score: Callable[[Any], float],
    calibration: Any,
    **settings: Any,
) -> None:
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        result = octavo.autotune(
            model,
            score,
            calibration,
            strategy={"kind": "bayesian", "over": "op", "sampler": "random"},
            max_trials=TRIALS,
            seed=1,
            minimise="size",
            storage=Path(folder) / "h.db",
            callbacks=(clock,),
            confirm=False,
            **settings,
        )
    trials = [t for t in result.trials if t.state == "complete"]
    walls = np.diff(clock.ends)[1:]
    over = [
        wall - t.seconds["evaluate"] - t.seconds["measure"]
        for wall, t in zip(walls, result.trials[1:], strict=True)
        if t.state == "complete"
    ]
    evaluation = statistics.median(t.seconds["evaluate"] for t in trials)
    overhead = statistics.median(over)
    bar = max(0.1 * evaluation, 0.030)
    verdict = "met" if overhead <= bar else "MISSED"
    print(
        f"{name:6} evaluation {evaluation * 1e3:7.1f} ms   engine overhead {overhead * 1e3:6.1f} "
        f"ms (worst {max(over) * 1e3:.1f})   "
        f"ratio {overhead / evaluation:.3f}   bar {bar * 1e3:.0f} ms: {verdict}"
    )


def main() -> None:
    torch.set_num_threads(2)
    net, d = digits.network(), digits.data()
    images = torch.from_numpy(d.test_x)

    def score_torch(model: Any) -> float:
        with torch.no_grad():
            return digits.accuracy(model(images).numpy(), d.test_y)

    def score_arrays(model: Any) -> float:
        return digits.accuracy(model(d.test_x), d.test_y)

    measure("torch", net, score_torch, d.calibration())
    measure("numpy", net, score_arrays, d.calibration(), backends=["numpy"])


if __name__ == "__main__":
    main()
