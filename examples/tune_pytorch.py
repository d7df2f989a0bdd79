"""Tune a PyTorch module: `python -m examples.tune_pytorch`."""

from __future__ import annotations

import torch

import octavo
from examples.digits import accuracy, data, network


def main() -> octavo.Result:
    digits, net = data(), network()
    images = torch.from_numpy(digits.test_x)

    def score(model: torch.nn.Module) -> float:
        """Score a candidate: a run on one backend is given the backend's own model."""
        with torch.no_grad():
            return accuracy(model(images).numpy(), digits.test_y)

    with octavo.ProgressDisplay() as show:
        result = octavo.autotune(
            net,
            score,
            calibration=digits.calibration(),
            tolerance=0.01,
            max_trials=8,
            callbacks=[show],
        )
    result.save("out/pytorch")

    again = octavo.load("out/pytorch", network)
    print(f"reloaded: accuracy {score(again):.4f}, float {score(net):.4f}")
    return result


if __name__ == "__main__":
    main()
