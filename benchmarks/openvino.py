"""The OpenVINO backend beside NNCF, which quantizes for the same runtime.

Run it as ``python -m benchmarks.openvino [minilm|digits] [--shapes 1x16 8x64] [--seconds 20]``.
NNCF is no part of octavo: without it (``pip install nncf``) its figures are left out.

Both begin with the same float file and the same calibration samples, and what both made is loaded
by plain OpenVINO with 2 threads and the same settings. Models run in turns, a block each; a ratio
is the median over rounds of two blocks of one round, so that a busy machine slows both. The bar
stands beside each figure.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import logging
import os
import re
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import openvino as ov
import torch

import octavo
from benchmarks import onnx as beside
from benchmarks.onnx import row
from octavo.core.values.scheme import FLOAT, OpScheme
from octavo.plugin import Op, PartChoice

Feed = Mapping[str, np.ndarray]
Run = Callable[[Feed], np.ndarray]
"""Takes arrays by name; returns the first output, which may be overwritten by the next call."""

SHAPES = ("1x16", "8x64", "32x64", "32x128")
"""Sentences x tokens."""
GOAL = 0.998
SPREADS = ((30.0, True), (30.0, False), (1000.0, True), (1000.0, False))
"""Largest over smallest range of channels, and whether ranges lie anywhere between."""
FASTER = 1.05
SETTINGS = {
    "INFERENCE_NUM_THREADS": 2,
    "NUM_STREAMS": 1,
    "PERFORMANCE_HINT": "LATENCY",
    # "Float" is float32, also where the CPU would rather have bfloat16.
    "INFERENCE_PRECISION_HINT": "f32",
}
BLOCK = 0.15
"""Seconds of one model's turn: long against a call's overhead, short against other work here."""


def has_nncf() -> bool:
    return importlib.util.find_spec("nncf") is not None


# Running


def in_openvino(path: Path) -> Run:
    """Return a saved model as plain OpenVINO runs it."""
    compiled = ov.Core().compile_model(path, "CPU", SETTINGS)
    request = compiled.create_infer_request()

    def run(fed: Feed) -> np.ndarray:
        request.infer(dict(fed), share_inputs=True)
        found: np.ndarray = request.get_output_tensor(0).data
        return found

    return run


def in_onnxruntime(path: Path) -> Run:
    session = beside.session(path)
    return lambda fed: session.run(None, dict(fed))[0]


def in_turns(
    runs: Mapping[str, Run], fed: Feed, seconds: float
) -> dict[str, list[float]]:
    """Return milliseconds of a call, by model and round; every second round goes backwards."""
    calls = {}
    for name, run in runs.items():
        run(fed)
        start = time.perf_counter()
        run(fed)
        calls[name] = max(1, int(BLOCK / (time.perf_counter() - start)))
    found: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(found[names[0]]) < 5:
        for name in names:
            if calls[name] > 1:
                # A short call begins with the caches that the model before it left.
                runs[name](fed)
            start = time.perf_counter()
            for _ in range(calls[name]):
                runs[name](fed)
            found[name].append((time.perf_counter() - start) / calls[name] * 1e3)
        names.reverse()
    return found


def ratio(times: Mapping[str, Sequence[float]], fast: str, slow: str) -> float:
    """Return how many times as fast one model is as another, the median over rounds."""
    pairs = zip(times[slow], times[fast], strict=True)
    return statistics.median(s / f for s, f in pairs)


# MiniLM


def sentences(run: Run, fed: Feed) -> np.ndarray:
    """Return mean-pooled unit vectors, shape (sentences, width)."""
    mask = fed["attention_mask"][..., None].astype(np.float32)
    summed = (run(fed) * mask).sum(1) / mask.sum(1)
    return np.asarray(summed / np.linalg.norm(summed, axis=1, keepdims=True))


def cosine(run: Run, expected: Sequence[np.ndarray], batches: Sequence[Feed]) -> float:
    """Return the mean cosine similarity to the float model's sentence vectors."""
    found = []
    for fed, vectors in zip(batches, expected, strict=True):
        found.append((sentences(run, fed) * vectors).sum(1))
    return float(np.concatenate(found).mean())


def searched(
    path: Path, calibration: Sequence[Feed], judges: Sequence[Feed], folder: Path
) -> tuple[Path, str]:
    """Search for the OpenVINO model: all linear ops in 8 bits, and of those what must be in float.

    Args:
        path: The float model.
        calibration: What ranges and GPTQ look at.
        judges: Sentences that decide what stays in float; not those of the cosine that is shown.
        folder: For the result.

    Returns:
        The IR, and what the search did.
    """
    reference = in_openvino(path)
    expected = [sentences(reference, fed) for fed in judges]

    def score(model: Any) -> float:
        return cosine(lambda fed: np.asarray(model(**fed)), expected, judges)

    linear = {
        "types": ["linear"],
        "mode": "static",
        "weight": {"dtype": "int8", "granularity": "channel"},
        "algorithm": "gptq",
    }
    table = {"types": ["embedding"], "scheme": "int8-weight-only"}
    start = time.perf_counter()
    result = octavo.autotune(
        path,
        score,
        list(calibration),
        {
            "backends": [{"kind": "openvino", "threads": 2}],
            "strategy": "prefix",
            # A little more than the bar: other sentences are shown than those that judge.
            "accuracy": {"tolerance": 0.75 * (1 - GOAL), "mode": "absolute"},
            "objective": {"minimise": ["size"]},
            "rules": [
                {"types": ["matmul", "add", "mul"], "keep": "float"},
                linear,
                table,
            ],
            "require": [beside.INT8],
            "transforms": [],
            "max_trials": 10,
        },
    )
    result.save(folder)
    quantized = [line for line in result.ledger.values() if not line.applied.is_float]
    kernels = sum(line.realization == "kernel" for line in quantized)
    spent = time.perf_counter() - start
    told = (
        f"{len(result.trials)} trials, {spent:.0f} s; {kernels} of {len(quantized)} "
        "quantized ops on kernels"
    )
    return folder / "model" / "model.xml", told


def octavo_onnx(path: Path, calibration: Sequence[Any], folder: Path) -> Path:
    """Return octavo's ONNX result, in operators that OpenVINO's reader knows."""

    def choose(op: Op, choices: Sequence[OpScheme]) -> OpScheme:
        return choices[0] if op.type == "linear" else FLOAT

    transforms = (PartChoice.model_validate(beside.INT8),)
    return beside.save(beside.quantized(path, choose, calibration, transforms), folder)


def nncf_transformer(path: Path, calibration: Iterable[Feed], out: Path) -> Path:
    """Return NNCF's int8 by its recipe for transformers."""
    import nncf

    batches = list(calibration)
    with quiet():
        made = nncf.quantize(
            ov.Core().read_model(path),
            nncf.Dataset(batches),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(batches),
        )
    ov.save_model(made, out, compress_to_fp16=False)
    return out


def minilm(folder: Path, shapes: Sequence[str], seconds: float) -> None:
    path = folder / "minilm.onnx"
    beside.export_minilm(path)
    _, tokens = beside._texts()
    calibration: list[Any] = [tokens(8 * i, 8) for i in range(4)]
    held = [tokens(32 + 32 * i, 32) for i in range(4)]
    judges = [tokens(160 + 8 * i, 8) for i in range(2)]
    saved, told = searched(path, calibration, judges, folder / "octavo")
    row("MiniLM: octavo's search", told)
    runs = {
        "ONNX Runtime float": in_onnxruntime(path),
        "OpenVINO float": in_openvino(path),
        "octavo's ONNX result": in_openvino(
            octavo_onnx(path, calibration, folder / "onnx")
        ),
        "octavo": in_openvino(saved),
    }
    if has_nncf():
        made = nncf_transformer(path, calibration, folder / "nncf.xml")
        runs["NNCF"] = in_openvino(made)
    reference = runs["ONNX Runtime float"]
    expected = [sentences(reference, fed) for fed in held]
    for name, run in list(runs.items())[2:]:
        close = cosine(run, expected, held)
        bar = f">= {GOAL}" if name == "octavo" else ""
        met = close >= GOAL if bar else None
        row(f"  cosine to float: {name}", f"{close:.4f}", bar, met)
    for shape in shapes:
        count, length = map(int, shape.split("x"))
        ids = held[0]["input_ids"][:count, :length].copy()
        times = in_turns(
            runs, {"input_ids": ids, "attention_mask": np.ones_like(ids)}, seconds
        )
        for name in list(runs)[1:]:
            over = ratio(times, name, "ONNX Runtime float")
            what = f"  {shape} tokens, speed over ONNX Runtime float: {name}"
            row(what, f"{over:.2f}")
        if "NNCF" in runs:
            over = ratio(times, "octavo", "NNCF")
            row(
                f"  {shape} tokens, speed of octavo over NNCF",
                f"{over:.2f}",
                f">= {FASTER}",
                over >= FASTER,
            )


# The digits network with channels of very different ranges


def digits(folder: Path, shapes: Sequence[str], seconds: float) -> None:
    from benchmarks import _tasks as tasks
    from examples.digits import accuracy, data, network

    found = data()
    for spread, even in SPREADS:
        path = folder / f"rescaled-{spread}-{even}.onnx"
        beside._export(
            tasks.rescale(network(), spread, even=even),
            (torch.from_numpy(found.test_x[:2]),),
            path,
            ["x"],
            ["logits"],
            ({0: torch.export.Dim("batch")},),
        )
        shown = f"{spread:.0f}:1, " + ("evenly" if even else "one channel in ten large")

        def score(run: Run) -> float:
            return accuracy(run({"x": found.test_x}), found.test_y)

        runs = {"float": in_openvino(path)}
        made = octavo.quantize_model(
            path,
            {
                "rules": [{"types": ["linear", "conv"], "scheme": "int8-static"}],
                "require": ["equalization"],
                "transforms": [],
            },
            calibration=[{"x": x} for x in found.calibration()],
            backend={"kind": "openvino", "threads": 2},
        )
        made.save(folder / f"octavo-{spread}-{even}")
        runs["octavo"] = in_openvino(
            folder / f"octavo-{spread}-{even}" / "model" / "model.xml"
        )
        products = [
            made.ledger[op.name]
            for op in made.view.ops
            if op.type in ("linear", "conv")
        ]
        kernels = sum(
            line.realization == "kernel" and not line.applied.is_float
            for line in products
        )
        plain, close = score(runs["float"]), score(runs["octavo"])
        row(
            f"digits rescaled {shown}: octavo, float",
            f"{close:.4f}, {plain:.4f}",
            ">= 0.99 of float",
            close >= 0.99 * plain,
        )
        row(
            "  products on integer kernels",
            f"{kernels} of {len(products)}",
            "all",
            kernels == len(products),
        )
        if has_nncf():
            out = folder / f"nncf-{spread}-{even}.xml"
            left = nncf_accuracy_control(path, found, score, out)
            runs["NNCF"] = in_openvino(out)
            row("  NNCF's accuracy control: accuracy", f"{score(runs['NNCF']):.4f}")
            row("  operations that it leaves in float", left)
        times = in_turns(runs, {"x": found.test_x[:32]}, seconds)
        for name in list(runs)[1:]:
            over = ratio(times, name, "float")
            row(f"  batch 32, speed over float: {name}", f"{over:.2f}")


def nncf_accuracy_control(
    path: Path, found: Any, score: Callable[[Run], float], out: Path
) -> str:
    """Write NNCF's result at a loss of 1 % at most; return how many operations stayed in float."""
    import nncf

    def validate(model: Any, batches: Iterable[Any]) -> tuple[float, None]:
        return score(lambda fed: model(dict(fed))[0]), None

    log = logging.getLogger("nncf")
    told = io.StringIO()
    # Its own handler prints every step.
    handlers, log.handlers = log.handlers, [logging.StreamHandler(told)]
    try:
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = nncf.quantize_with_accuracy_control(
                ov.Core().read_model(path),
                nncf.Dataset([{"x": x} for x in found.calibration()]),
                nncf.Dataset([{"x": found.test_x}]),
                validate,
                max_drop=0.01,
                drop_type=nncf.DropType.RELATIVE,
                subset_size=4,
            )
    finally:
        log.handlers = handlers
    ov.save_model(made, out, compress_to_fp16=False)
    said = re.search(r"(\d+) out of (\d+) were reverted", told.getvalue())
    return f"{said[1]} of {said[2]}" if said else "none"


@contextlib.contextmanager
def quiet() -> Any:
    """NNCF draws progress bars."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        yield


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("parts", nargs="*", help="minilm, digits; none: both")
    asked.add_argument("--shapes", nargs="+", default=SHAPES, metavar="BxT")
    asked.add_argument("--seconds", type=float, default=20, help="of each comparison")
    given = asked.parse_args()
    torch.set_num_threads(2)
    logging.disable(logging.NOTSET)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    print(
        f"openvino {ov.get_version()}, onnxruntime {ort.__version__}, 2 threads, "
        f"{ov.Core().get_property('CPU', 'FULL_DEVICE_NAME')}"
    )
    sections = {"minilm": minilm, "digits": digits}
    with tempfile.TemporaryDirectory(prefix="octavo-bench-") as folder:
        for name in given.parts or sections:
            sections[name](Path(folder), given.shapes, given.seconds)


if __name__ == "__main__":
    main()
