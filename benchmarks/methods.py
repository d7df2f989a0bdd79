"""Every method on a small language model, at each width. Run: python -m benchmarks.methods
[--bits u2,u3,nf4] [--iterations 20] [METHOD ...]

One row for each method and format: how far the predictions are from the float model's over the
held-out tokens (Kullback-Leibler divergence, in nats a token), perplexity, seconds to quantize with
calibration left out, and bytes of the quantized weights. A method is a row of METHODS, a format a
row of FORMATS.

The model is read from the folder in the environment variable OCTAVO_LM (model files, evaluate.py
with load, calibration and perplexity, heldout.npy).
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks._tasks import Logits
from benchmarks.algorithms import load_task
from octavo.core.contract.adapter import Candidate
from octavo.core.contract.plugins import PluginHost
from octavo.core.opening.opening import open_model
from octavo.core.opening.roundable import why_not_by
from octavo.core.opening.rules import Rule
from octavo.core.opening.spaces import build_space
from octavo.core.quantizing.realize import Realizer
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import OpScheme, PartChoice
from octavo.core.values.space import Unit

GROUP = "group:32"
FORMATS: Mapping[str, dict[str, Any]] = {
    "u2": {"dtype": "uint2", "granularity": GROUP},
    "s2": {"dtype": "int2", "granularity": GROUP},
    "u3": {"dtype": "uint3", "granularity": GROUP},
    "s3": {"dtype": "int3", "granularity": GROUP},
    "u4": {"dtype": "uint4", "granularity": GROUP},
    "s4": {"dtype": "int4", "granularity": GROUP},
    # In groups of 64, as QLoRA has it.
    "nf4": {"dtype": "nf4", "granularity": "group:64"},
    "mxfp4": {"dtype": "mxfp4"},
}
"""Name -> the weight of a rule: u and s are asymmetric and symmetric integers."""

INTEGERS = ("u2", "s2", "u3", "s3", "u4", "s4")


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        algorithm: The weight algorithm with its settings; a list is a chain.
        transforms: Applied first, in order.
        recovery: Learned after it, in order.
        formats: Where it goes.
    """

    algorithm: dict[str, Any] | list[dict[str, Any]] = field(
        default_factory=lambda: {"kind": "rtn"}
    )
    transforms: tuple[dict[str, Any], ...] = ()
    recovery: tuple[dict[str, Any], ...] = ()
    formats: Sequence[str] = tuple(FORMATS)

    @property
    def kinds(self) -> list[str]:
        """Names of the weight algorithms, in the order of the chain."""
        chain = self.algorithm
        steps = chain if isinstance(chain, list) else [chain]
        return [step["kind"] for step in steps]


AWQ = {"kind": "awq"}
GPTQ = {"kind": "gptq"}
AUTOROUND = {"kind": "autoround"}
BLOCKS = {"kind": "reconstruction"}
METHODS: Mapping[str, Method] = {
    "rtn": Method(),
    "rtn, clip search": Method({"kind": "rtn", "clip": "mse"}),
    "hqq": Method({"kind": "hqq"}),
    "awq, clip alone": Method({"kind": "awq"}),
    "gptq": Method(GPTQ),
    "gptq, act-order": Method({"kind": "gptq", "act_order": True}),
    "gptaq": Method({"kind": "gptaq"}),
    "gptaq, alpha 0.25": Method({"kind": "gptaq", "alpha": 0.25}),
    "importance": Method({"kind": "importance"}),
    "importance, gradients": Method({"kind": "importance", "importance": "gradients"}),
    "scale estimation": Method({"kind": "scale_estimation"}),
    "rtn, awq scales": Method(transforms=(AWQ,)),
    "rtn, awq without data": Method(transforms=({"kind": "awq", "source": "weights"},)),
    "awq > gptaq": Method([AWQ, {"kind": "gptaq"}]),
    "gptq, low-rank 8": Method([GPTQ, {"kind": "low_rank", "rank": 8}]),
    "gptq, low-rank 16": Method([GPTQ, {"kind": "low_rank", "rank": 16}]),
    "lqer, rank 16": Method({"kind": "low_rank", "rank": 16, "source": "weights"}),
    "adaround": Method({"kind": "adaround"}, formats=INTEGERS),
    "autoround": Method({"kind": "autoround"}, formats=INTEGERS),
    "autoround-block": Method(recovery=(BLOCKS,), formats=INTEGERS),
    "gptq, autoround-block": Method(GPTQ, recovery=(BLOCKS,), formats=INTEGERS),
    "awq > gptq": Method([AWQ, GPTQ]),
    "scale estimation > gptq": Method([{"kind": "scale_estimation"}, GPTQ]),
    "importance > gptq": Method([{"kind": "importance"}, GPTQ]),
    "hqq > gptq": Method([{"kind": "hqq"}, GPTQ]),
    "awq > autoround": Method([AWQ, AUTOROUND], formats=INTEGERS),
    "gptq > autoround": Method([GPTQ, AUTOROUND], formats=INTEGERS),
    "awq > gptq > autoround": Method([AWQ, GPTQ, AUTOROUND], formats=INTEGERS),
    "awq > gptq, awq scales": Method([AWQ, GPTQ], ({"kind": "awq"},)),
    "distill": Method(recovery=({"kind": "distillation"},), formats=INTEGERS),
    "gptq, distill": Method(
        GPTQ, recovery=({"kind": "distillation"},), formats=INTEGERS
    ),
}
"""Name -> method."""


class Bench:
    """The float model, its calibration, and what its predictions are on held-out tokens.

    Args:
        folder: Of the language model.
        rows: Sequences in one calibration batch.
    """

    def __init__(self, folder: Path, rows: int = 8) -> None:
        self.task = load_task(folder)
        self.model = Logits(self.task.load())
        tokens = self.task.calibration()
        self.batches = [(part,) for part in tokens.split(rows)]
        self.host = PluginHost()
        self.opened = open_model(self.model, self.host, example=self.batches[0])
        # As the peers did, the tied embedding and output layer stay in float.
        self.tied = [
            op.name
            for op in self.opened.view.ops
            if op.weight is not None and op.weight.shared_with
        ]
        self.held_out = _held_out(folder)
        self.reference = [self._log_odds(self.model, x) for x in self.held_out]

    def why_not(self, method: Method, wanted: str) -> str:
        """Return why a method cannot round to a format; empty where it can."""
        dtype = FORMATS[wanted]["dtype"]
        reasons = [why_not_by(kind, dtype, self.host) for kind in method.kinds]
        return next(filter(None, reasons), "")

    def quantized(
        self, method: Method, formats: Sequence[str]
    ) -> Iterator[tuple[str, Candidate, float]]:
        """Yield (format, candidate, the seconds that it took after calibration).

        Formats of one granularity are calibrated in one pass.
        """
        by_granularity: dict[str | None, list[str]] = {}
        for name in formats:
            granularity = FORMATS[name].get("granularity")
            by_granularity.setdefault(granularity, []).append(name)
        for alike in by_granularity.values():
            yield from self._of_one_granularity(method, alike)

    def _of_one_granularity(
        self, method: Method, formats: Sequence[str]
    ) -> Iterator[tuple[str, Candidate, float]]:
        dtypes = [FORMATS[name]["dtype"] for name in formats]
        rules = [
            Rule(
                types="linear",
                mode="weight_only",
                weight={**FORMATS[formats[0]], "dtype": dtypes},
                algorithm=[method.algorithm],
            ),
            Rule(ops=self.tied, keep="float"),
        ]
        transforms = tuple(_part(table) for table in method.transforms)
        recovery = tuple(_part(table) for table in method.recovery)
        space = build_space(self.opened, rules, require=transforms, simulated=True)
        realizer = Realizer(self.opened, space, self.host)
        realizer.calibrate(self.batches)
        for name, dtype in zip(formats, dtypes, strict=True):
            schemes = {u.name: _of_dtype(u, dtype) for u in space.tunable}
            chosen = space.recipe(schemes)
            recipe = Recipe(dict(chosen.schemes), transforms, chosen.backend, recovery)
            began = time.perf_counter()
            candidate = realizer.candidate(recipe)
            yield name, candidate, time.perf_counter() - began

    def judged(self, candidate: Candidate) -> tuple[float, float]:
        """Return the mean divergence from the float model, nats a token, and perplexity."""
        divergence, surprise, tokens, guesses = 0.0, 0.0, 0, 0
        for x, log_p in zip(self.held_out, self.reference, strict=True):
            log_q = self._log_odds(candidate.native, x)
            divergence += float((log_p.exp() * (log_p - log_q)).sum())
            of_next = log_q[:, :-1].gather(2, x[:, 1:, None])
            surprise -= float(of_next.sum())
            tokens += x.numel()
            guesses += of_next.numel()
        return divergence / tokens, math.exp(surprise / guesses)

    @staticmethod
    @torch.no_grad()
    def _log_odds(model: Any, tokens: torch.Tensor) -> torch.Tensor:
        return torch.log_softmax(model(tokens).float(), -1)


def _held_out(folder: Path, length: int = 256, rows: int = 8) -> list[torch.Tensor]:
    """Return the tokens over which the task takes its perplexity, in batches."""
    tokens = np.load(folder / "heldout.npy").astype(np.int64)[: 64 * length]
    whole = tokens[: len(tokens) // length * length]
    return list(torch.from_numpy(whole).view(-1, length).split(rows))


def _part(table: Mapping[str, Any]) -> PartChoice:
    return PartChoice.model_validate(dict(table))


def _of_dtype(unit: Unit, dtype: str) -> OpScheme:
    """Return the choice of a unit whose weight has a dtype."""
    weights = ((scheme, scheme.weight) for scheme in unit.choices)
    return next(
        scheme for scheme, weight in weights if weight and weight.dtype == dtype
    )


def _bytes(candidate: Candidate) -> int:
    """Return what the quantized weights take."""
    sizes = candidate.bytes_by_op() or {}
    quantized = [n for n, line in candidate.ledger.items() if not line.applied.is_float]
    return sum(sizes.get(name, 0) for name in quantized)


def _with_iterations(method: Method, iterations: int | None) -> Method:
    if iterations is None:
        return method
    learned = tuple(
        {**step, "iterations": iterations} if step["kind"] == "reconstruction" else step
        for step in method.recovery
    )
    return replace(method, recovery=learned)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("methods", nargs="*", metavar="METHOD", help=", ".join(METHODS))
    parser.add_argument("--bits", default=",".join(FORMATS), help="formats, by comma")
    parser.add_argument("--iterations", type=int, help="of block reconstruction")
    given = parser.parse_args()
    folder = os.environ.get("OCTAVO_LM")
    if not folder:
        parser.error("set OCTAVO_LM to the language model's folder")
    bench = Bench(Path(folder))
    print(
        f"{'method':24} {'format':6} {'KL':>9} {'perplexity':>11} {'seconds':>8} {'bytes':>10}"
    )
    for name in given.methods or METHODS:
        method = _with_iterations(METHODS[name], given.iterations)
        asked = []
        for wanted in given.bits.split(","):
            if wanted not in method.formats:
                continue
            why_not = bench.why_not(method, wanted)
            if why_not:
                print(f"{name:24} {wanted:6} {why_not}")
            else:
                asked.append(wanted)
        for wanted, candidate, seconds in bench.quantized(method, asked):
            divergence, perplexity = bench.judged(candidate)
            print(
                f"{name:24} {wanted:6} {divergence:9.5f} {perplexity:11.3f} {seconds:8.1f} "
                f"{_bytes(candidate):10d}",
                flush=True,
            )


if __name__ == "__main__":
    main()
