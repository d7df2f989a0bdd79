"""Weight algorithms: speed and quality, each figure beside its bar. Run: python -m
benchmarks.algorithms [rounding] [gptq] [language]

The language model is read from the folder in the environment variable OCTAVO_LM (model files,
evaluate.py with load, calibration and perplexity); without it that part is left out.
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks._tasks import Logits
from octavo.core.calibration.features import FEATURE_OBSERVERS
from octavo.core.calibration.statistics import Statistics
from octavo.core.contract.algorithm import WeightContext
from octavo.core.contract.calibrator import Probe
from octavo.core.contract.plugins import PluginHost
from octavo.core.numerics.rows import rows_of
from octavo.core.quantizing.algorithms.gptq import Gptq, GptqConfig
from octavo.core.quantizing.algorithms.rtn import RoundToNearest, RtnConfig
from octavo.core.values.scheme import PartChoice, QuantSpec

N = 4096
MIB = 2**20


def row(
    name: str,
    value: float,
    bar: float,
    *,
    at_most: bool = False,
    unit: str = "",
    note: str = "",
) -> None:
    met = value <= bar if at_most else value >= bar
    print(
        f"  {name:58} {value:9.3f}{unit}   bar {'<=' if at_most else '>='} {bar:g}{unit}: "
        f"{'met' if met else 'MISSED'}{note}",
        flush=True,
    )


def interleaved(runs: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Return each run's median seconds, measured in turns."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def rounding() -> None:
    print(
        f"round to nearest, {N}x{N} float32, share of memory-copy bandwidth (both of one run, "
        "medians of 15)"
    )
    x = np.random.default_rng(0).normal(size=(N, N)).astype(np.float32)
    target, tx = np.zeros_like(x), torch.from_numpy(x)
    into = torch.zeros_like(tx)
    rtn, context = RoundToNearest(RtnConfig()), WeightContext()
    int8, int4 = (
        QuantSpec(dtype="int8", granularity="channel"),
        QuantSpec(dtype="int4", granularity="group:32"),
    )
    medians = interleaved(
        {
            "copy": lambda: np.copyto(target, x),
            "numpy int8 per channel": lambda: rtn.quantize(x, int8, context),
            "numpy int4 group 32": lambda: rtn.quantize(x, int4, context),
            "torch copy": lambda: into.copy_(tx),
            "torch int8 per channel": lambda: rtn.quantize(tx, int8, context),
            "torch int4 group 32": lambda: rtn.quantize(tx, int4, context),
        },
        15,
    )
    bandwidth = 2 * x.nbytes / medians["copy"]
    print(
        f"  memory copy: numpy.copyto {bandwidth / 1e9:.1f} GB/s, torch "
        f"{2 * x.nbytes / medians['torch copy'] / 1e9:.1f} GB/s"
    )
    for name, seconds in medians.items():
        if "copy" not in name:
            scales = N if "channel" in name else N * N // 32
            moved = x.nbytes + N * N + 4 * scales
            row(
                f"{name} ({seconds * 1e3:.1f} ms)",
                moved / seconds / bandwidth,
                0.35 if name.startswith("numpy") else 0.4,
            )
    for name, spec in (("int8 per channel", int8), ("int4 group 32", int4)):
        tracemalloc.start()
        result = rtn.quantize(x, spec, context)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        kept = (
            result.codes.nbytes
            + result.params.scale.nbytes
            + result.params.zero_point.nbytes
        )
        row(
            f"numpy {name}: extra memory over the matrix",
            (peak - kept) / x.nbytes,
            0.25,
            at_most=True,
        )


def gptq() -> None:
    print(
        f"GPTQ int4 group 128, {N}x{N}, given Gram matrix, over its dense linear algebra (medians "
        "of 3)"
    )
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2 * N, N, generator=generator)
    gram, weight = x.T @ x, torch.randn(N, N, generator=generator) * 0.02
    del x
    damped = gram + torch.eye(N) * 0.01 * gram.diagonal().mean()
    spec, algorithm = (
        QuantSpec(dtype="int4", granularity="group:128"),
        Gptq(GptqConfig()),
    )
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    numpy_weight, numpy_context = weight.numpy(), WeightContext(gram=gram.numpy())
    medians = interleaved(
        {
            "algebra": lambda: (
                torch.linalg.cholesky(damped),
                torch.linalg.cholesky(inverse, upper=True),
                weight @ gram,
            ),
            "torch": lambda: algorithm.quantize(weight, spec, WeightContext(gram=gram)),
            "numpy": lambda: algorithm.quantize(numpy_weight, spec, numpy_context),
        },
        3,
    )
    print(
        f"  two Cholesky factorisations and one product: {medians['algebra']:.2f} s; torch "
        f"{medians['torch']:.2f} s, numpy {medians['numpy']:.2f} s"
    )
    row(
        "torch GPTQ over its dense linear algebra",
        medians["torch"] / medians["algebra"],
        2.0,
        at_most=True,
    )
    row(
        "numpy GPTQ over torch GPTQ",
        medians["numpy"] / medians["torch"],
        2.0,
        at_most=True,
    )


def load_task(folder: Path) -> Any:
    """Return the module evaluate.py of a language model's folder."""
    spec = importlib.util.spec_from_file_location(
        "language_model", folder / "evaluate.py"
    )
    assert spec is not None
    assert spec.loader is not None
    task = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(task)
    return task


class LanguageModel:
    """The float model with what calibration saw of each linear layer, and its weights to be changed
    in place."""

    def __init__(self, folder: Path) -> None:
        self.task = load_task(folder)
        self.model = self.task.load()
        self.host = PluginHost()
        tokens = self.task.calibration()
        session = (
            self.host.adapters()["torch"]
            .build()
            .open(Logits(self.model), (tokens[:2],))
        )
        self.view = session.describe()
        # As the peers did, the tied embedding and output layer stay in float.
        tied = {
            o.weight.name
            for o in self.view.ops
            if o.weight is not None and o.weight.shared_with
        }
        self.ops = {
            o.name: o
            for o in self.view.ops
            if o.type == "linear" and o.weight is not None and o.weight.name not in tied
        }
        probes = [
            Probe(o.inputs[0], PartChoice(kind=need), None, rows_of(o))
            for o in self.ops.values()
            for need in ("gram", "channel_range")
        ]
        self.statistics = Statistics(
            probes, lambda probe: FEATURE_OBSERVERS[probe.calibrator.kind](probe.rows)
        )
        session.observe(
            [(tokens[i : i + 8],) for i in range(0, len(tokens), 8)],
            self.statistics.values,
            self.statistics.update,
        )
        self.weights = {
            o.name: session.tensor(o.weight.name).clone() for o in self.ops.values()
        }
        self.float = self.task.perplexity(self.model)

    def perplexity(
        self,
        algorithm: dict[str, Any],
        spec: QuantSpec,
        transform: dict[str, Any] | None = None,
    ) -> float:
        """Quantize every linear layer and evaluate."""
        factors = {}
        if transform is not None:
            rescaling = self.host.part("transforms", transform["kind"]).build(
                self.host.read("transforms", transform)
            )
            by_name = {o.weight.name: o.name for o in self.ops.values()}
            chosen = rescaling.factors(
                self.view,
                lambda name: self.weights[by_name[name]],
                self.statistics,
                self.ops,
            )
            factors = {
                member: chosen[g.name]
                for g in self.view.groups
                if g.name in chosen
                for member in g.members
            }
        part = self.host.part("algorithms", algorithm["kind"]).build(
            self.host.read("algorithms", algorithm)
        )
        parameters = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, op in self.ops.items():
                gram = self.statistics.observer(
                    Probe(op.inputs[0], PartChoice(kind="gram"), None, rows_of(op))
                ).value[0]
                f = factors.get(name)
                weight = self.weights[name] if f is None else self.weights[name] * f
                gram = gram if f is None else gram / (f[:, None] * f[None, :])
                numbers = part.quantize(
                    weight, spec, WeightContext(gram=gram)
                ).dequantize()
                parameters[op.weight.name.removeprefix("model.")].copy_(
                    numbers if f is None else numbers / f
                )
        return float(self.task.perplexity(self.model))


TABLE: dict[str, tuple[dict[str, Any], bool]] = {
    "rtn": ({"kind": "rtn"}, False),
    "rtn, clip search": ({"kind": "rtn", "clip": "mse"}, False),
    "hqq": ({"kind": "hqq"}, False),
    "awq, clip alone": ({"kind": "awq"}, False),
    "awq, scale alone": ({"kind": "rtn"}, True),
    "awq, scale and clip": ({"kind": "awq"}, True),
    "adaround, 100 steps": ({"kind": "adaround", "iterations": 100}, False),
    "autoround, 100 steps": ({"kind": "autoround", "iterations": 100}, False),
    "gptq": ({"kind": "gptq"}, False),
    "gptq, act-order": ({"kind": "gptq", "act_order": True}, False),
}


def language() -> None:
    folder = os.environ.get("OCTAVO_LM")
    if not folder:
        print("perplexity: left out; set OCTAVO_LM to the language model's folder")
        return
    lm = LanguageModel(Path(folder))
    print(
        f"perplexity added to the float model's {lm.float:.2f}, group 32, by bits and symmetry"
    )
    columns = [(bits, symmetric) for symmetric in (False, True) for bits in (4, 3, 2)]
    print(
        "  "
        + " " * 22
        + "".join(f"{b}-bit {'sym' if s else 'asym':6}" for b, s in columns)
        + "   seconds"
    )
    found: dict[str, dict[tuple[int, bool], float]] = {}
    for name, (algorithm, scaled) in TABLE.items():
        start = time.perf_counter()
        found[name] = {}
        for bits, symmetric in columns:
            spec = QuantSpec(
                dtype=f"{'' if symmetric else 'u'}int{bits}",
                symmetric=symmetric,
                granularity="group:32",
            )
            transform = (
                {
                    "kind": "awq",
                    "dtype": spec.dtype,
                    "symmetric": symmetric,
                    "granularity": "group:32",
                }
                if scaled
                else None
            )
            found[name][bits, symmetric] = lm.perplexity(algorithm, spec, transform)
        line = "".join(f"{found[name][c] - lm.float:+11.3f} " for c in columns)
        print(f"  {name:22}{line}{time.perf_counter() - start:9.1f}", flush=True)

    # The best of each family, on the better of the two symmetries.
    def best(prefix: str, bits: int) -> float:
        return min(
            v
            for name, values in found.items()
            if name.startswith(prefix)
            for (b, _), v in values.items()
            if b == bits
        )

    for prefix in ("gptq", "awq", "autoround"):
        for bits in (3, 2):
            row(
                f"{prefix} below round to nearest at {bits} bits, perplexity",
                best("rtn", bits) - best(prefix, bits),
                0.0,
            )
    row(
        "round to nearest at 2 bits, perplexity",
        found["rtn"][2, False],
        91.3,
        at_most=True,
    )
    row("GPTQ at 2 bits, perplexity", best("gptq", 2), 90.33, at_most=True)
    row(
        "the best at 2 bits, perplexity",
        min(best(n, 2) for n in found),
        90.2,
        at_most=True,
    )


def main() -> None:
    torch.set_num_threads(2)
    parts = {"rounding": rounding, "gptq": gptq, "language": language}
    for name in sys.argv[1:] or parts:
        parts[name]()


if __name__ == "__main__":
    main()
