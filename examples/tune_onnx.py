"""Tune an ONNX file, with rules and two objectives: `python -m examples.tune_onnx`."""

from __future__ import annotations

from pathlib import Path

import torch

import octavo
from examples.digits import accuracy, data, network

SETTINGS = {
    "max_trials": 8,
    "accuracy": {"metric": "accuracy", "tolerance": 0.01},
    "objective": {"minimise": [{"kind": "latency", "batch_size": 32}, "size"]},
    "rules": [{"types": ["linear"], "keep": "float"}],  # leave the classifier alone
}


def main(folder: Path = Path("out")) -> octavo.Result:
    digits = data()
    folder.mkdir(exist_ok=True)
    path = folder / "digits.onnx"
    example = (torch.from_numpy(digits.test_x[:2]),)
    torch.onnx.export(
        network(),
        example,
        path,
        input_names=["image"],
        dynamic_shapes=({0: "n"},),
        dynamo=True,
        verbose=False,
    )

    with octavo.ProgressDisplay() as show:
        result = octavo.autotune(
            path,
            lambda model: accuracy(model(digits.test_x), digits.test_y),
            digits.calibration(),
            SETTINGS,
            callbacks=[show],
        )
    result.save(folder / "onnx")
    print(f"report: {result.report(folder / 'onnx.html')}")
    for name, line in result.ledger.items():
        print(f"{name:40} {line.applied}  {line.reason}")
    return result


if __name__ == "__main__":
    main()
