"""Transforms on the digits network whose channels are rescaled by 2**-6 to 2**6, its function
unchanged: accuracy at int8 static, alone and in pairs, on three backends. Run: python -m
benchmarks.transforms [torch] [onnx] [numpy] [--pairs] [--seed N]
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks._tasks import rescale
from examples.digits import accuracy, data, network
from octavo.core.contract.adapter import Opened
from octavo.core.contract.plugins import PluginHost
from octavo.core.opening.presets import preset_recipe
from octavo.core.opening.spaces import build_space
from octavo.core.quantizing.realize import Realizer
from octavo.core.values.scheme import PartChoice
from octavo.core.values.space import TuningSpace

HOST = PluginHost(third_party=False)
SPREAD = 2.0**12
Chain = tuple[PartChoice, ...]

ALONE: dict[str, PartChoice] = {
    "smoothquant": PartChoice(kind="smoothquant"),
    "smoothquant auto": PartChoice(kind="smoothquant", options=(("alpha", "auto"),)),
    "awq": PartChoice(kind="awq"),
    "equalization": PartChoice(kind="equalization"),
    "spiq": PartChoice(kind="spiq"),
    "spiq norm": PartChoice(kind="spiq", options=(("source", "norm"),)),
    "outlier_suppression": PartChoice(kind="outlier_suppression"),
    "outlier_suppression_plus": PartChoice(kind="outlier_suppression_plus"),
    "hadamard": PartChoice(kind="hadamard"),
}
PAIRED = (
    "smoothquant",
    "equalization",
    "spiq norm",
    "outlier_suppression_plus",
    "hadamard",
)
"""Those that are tried in pairs: the others choose by the same formulas."""


def chains(*, pairs: bool) -> dict[str, Chain]:
    """Return each transform, and with ``pairs`` each two of some in both orders."""
    found: dict[str, Chain] = {"none": ()}
    found.update((name, (choice,)) for name, choice in ALONE.items())
    if pairs:
        for first, second in permutations(PAIRED, 2):
            found[f"{first} > {second}"] = ALONE[first], ALONE[second]
    return found


def opened(backend: str, net: Any, example: np.ndarray, folder: Path) -> Opened:
    """Open the network on one backend; others than PyTorch read its ONNX export."""
    session = HOST.adapters()["torch"].build().open(net, (torch.from_numpy(example),))
    if backend != "torch":
        path = folder / "digits.onnx"
        session.export("onnx", path)
        session = HOST.adapters()[backend].build().open(str(path), (example,))
    return Opened(backend, session, session.describe(), session.capability())


def accuracies(backend: str, net: Any, wanted: dict[str, Chain]) -> dict[str, float]:
    """Return the accuracy at int8 static after each chain of transforms, float's first."""
    digits = data()
    batches = [(batch,) for batch in digits.calibration()]
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = opened(backend, net, batches[0][0], Path(folder))
        space = build_space(model, ())
        tried = TuningSpace(space.backend, space.units, tuple(wanted.values()))
        realizer = Realizer(model, tried, HOST)
        realizer.calibrate(batches)
        recipe = preset_recipe("int8-static", tried, model)
        found["float"] = _accuracy(model.session.reference())
        for name, chain in wanted.items():
            candidate = realizer.candidate(replace(recipe, transforms=chain))
            found[name] = _accuracy(candidate)
    return found


def _accuracy(model: Any) -> float:
    digits = data()
    parts = [model.run((part,))[0] for part in np.array_split(digits.test_x, 6)]
    return accuracy(np.concatenate(parts), digits.test_y)


def main(arguments: Sequence[str]) -> None:
    """Print the table: a row for each chain, a column for each backend."""
    seed = int(arguments[arguments.index("--seed") + 1]) if "--seed" in arguments else 0
    wanted = chains(pairs="--pairs" in arguments)
    known = ("torch", "onnx", "numpy")
    backends = [b for b in known if b in arguments] or list(known)
    net = rescale(network(), SPREAD, even=True, seed=seed)
    columns = {}
    for backend in backends:
        start = time.perf_counter()
        columns[backend] = accuracies(backend, net, wanted)
        print(f"{backend}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    width = max(map(len, wanted))
    print(f"{'int8 static after':{width}}", *(f"{b:>7}" for b in backends))
    for name in ("float", *wanted):
        figures = (f"{columns[backend][name]:7.3f}" for backend in backends)
        print(f"{name:{width}}", *figures, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
