"""`make demo`: one network, one configuration, three backends.

The digits network is trained in PyTorch, exported to ONNX and to a graph of NumPy operations, and
one search over the three finds the fastest int8 model that loses at most 1 % of the accuracy.
Leaves the model and report.html in out/demo.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import octavo
from examples.digits import data, network
from octavo.cli.console import out
from octavo.core.report import report_data
from octavo.core.report.summary import summary

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "out" / "demo"


def main(folder: Path = OUT) -> octavo.Result:
    """Tune, print the tables, save the model and the report."""
    torch.set_num_threads(2)
    start = time.perf_counter()
    digits = data()
    print(
        f"training the digits network on {len(digits.train_x)} images ...", flush=True
    )
    net = network()

    def accuracy(model: octavo.ArrayModel) -> octavo.Evaluation:
        """Score arrays in, arrays out: the same function for every backend."""
        logits = np.concatenate(
            [
                model(digits.test_x[i : i + 128])
                for i in range(0, len(digits.test_x), 128)
            ]
        )
        right = (logits.argmax(1) == digits.test_y).astype(float)
        return octavo.Evaluation(right.mean(), per_sample=right)

    with octavo.ProgressDisplay() as show:
        result = octavo.autotune(
            net,
            accuracy,
            calibration=digits.calibration(),
            config=ROOT / "examples" / "digits.toml",
            backends=["torch", "onnx", "numpy"],
            callbacks=(show,),
        )
    result = replace(result, command="make demo")
    saved = result.save(folder)
    page = result.report(saved / "report.html", "The digits network on three backends")

    console = out()
    console.print(summary(report_data(result.facts()), saved), crop=False)
    console.print(
        f"result: {saved}\nreport: {page}\n{time.perf_counter() - start:.0f} s",
        soft_wrap=True,
    )
    return result


if __name__ == "__main__":
    sys.exit(0 if main().goal_met else 3)
