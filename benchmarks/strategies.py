"""Strategies against each other. Run it as ``python -m benchmarks.strategies [simulated] [digits]
[rescaled] [retrieval] [language]``.

Without a name it runs all but ``retrieval`` and ``language``, which take many minutes. ``language``
needs OCTAVO_LM.

A row says: evaluations, full-evaluation equivalents (racing stops some early; each run over
sensitivity batches counts by its samples), wall time, whether the goal was reached and the
objective of the best recipe.
"""

from __future__ import annotations

import contextlib
import math
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import octavo
from octavo.core.contract.objective import Subject
from octavo.core.contract.plugins import PluginHost
from octavo.core.opening.opening import open_model
from octavo.core.sensitivity.service import SensitivityService
from octavo.core.testing.simulator import simulate

HOST = PluginHost(third_party=False)
ALL = (
    "auto",
    "basic",
    "conservative",
    "mse",
    "mse_v2",
    "hawq_v2",
    "accuracy_control",
    "prefix",
    "bayesian",
    "random",
    "coordinate",
    "exhaustive",
)
SEEDS = range(5)


def verdict(kept: bool) -> str:
    return "ok" if kept else "MISSED"


def simulated() -> None:
    """The bars on simulated models, then every strategy on one of them."""
    print(
        "\nauto on simulated models, 4 schemes each, 5 seeds; proxies are wrong by 10 % (sigma of "
        "the logarithm)"
    )
    print(
        f"{'losses':<12} {'ops':>5} {'gap median':>11} {'worst':>7} {'bar':>5} "
        f"{'evaluations':>12} {'bar':>4} {'own time':>9}"
    )
    for name, coupling, bar in (("additive", 0.0, 0.02), ("interacting", 0.5, 0.05)):
        for units in (16, 64, 256, 1024):
            limit = math.ceil(math.log2(units)) + 5
            gaps, used, spent = [], [], []
            for seed in SEEDS:
                simulation = simulate(units, coupling=coupling, seed=seed)
                found, own = timed_search(simulation, "auto", limit)
                gaps.append(found.best_cost / simulation.optimum - 1)
                used.append(len(found.trials))
                spent.append(own)
            kept = (
                max(gaps) <= bar
                and max(used) <= limit
                and (units < 1024 or max(spent) < 1.0)
            )
            print(
                f"{name:<12} {units:>5} {statistics.median(gaps):>11.2%} {max(gaps):>7.2%} "
                f"{bar:>5.0%} "
                f"{min(used):>4} to {max(used):<5} {limit:>4} {max(spent):>7.2f} s   "
                f"{verdict(kept)}"
            )
    print(
        "\nthe same with proxies wrong by 40 %, a score noise of 5 % of the tolerance, and every "
        "tenth trial failing (no bar)"
    )
    for units in (16, 64, 256):
        gaps, used = [], []
        for seed in SEEDS:
            simulation = simulate(
                units,
                coupling=0.5,
                seed=seed,
                proxy_noise=0.4,
                noise=0.05,
                failures=0.1,
            )
            found, _ = timed_search(simulation, "auto", 50)
            gaps.append(found.best_cost / simulation.optimum - 1)
            used.append(len(found.trials))
        print(
            f"{'interacting':<12} {units:>5} {statistics.median(gaps):>11.2%} {max(gaps):>7.2%} "
            f"{min(used):>10} to {max(used)}"
        )
    print(
        "\nevery strategy on 64 interacting ops, at most 100 evaluations (medians of 3 seeds)"
    )
    print(
        f"{'strategy':<18} {'evaluations':>11} {'best at':>8} {'own time':>9} {'reached':>8} "
        f"{'over the optimum':>17}"
    )
    for name in ALL:
        rows = []
        for seed in range(3):
            simulation = simulate(64, coupling=0.5, seed=seed)
            found, own = timed_search(simulation, name, 100)
            rows.append(
                (
                    len(found.trials),
                    found.best_at,
                    own,
                    found.best_cost / simulation.optimum - 1,
                )
            )
        middle = [statistics.median(r[i] for r in rows) for i in range(4)]
        reached = sum(math.isfinite(r[3]) for r in rows)
        over = f"{middle[3]:>16.0%}" if math.isfinite(middle[3]) else f"{'-':>16}"
        print(
            f"{name:<18} {middle[0]:>11.0f} {middle[1]:>8.0f} {middle[2]:>7.2f} s {reached:>5}/3 "
            f"{over}",
            flush=True,
        )


def timed_search(simulation: Any, name: str, limit: int) -> tuple[Any, float]:
    """Search a simulation; returns what was found and the processor seconds that the strategy
    itself took."""
    strategy = HOST.part("strategies", name).build(
        HOST.read("strategies", name), simulation.problem()
    )
    own = 0.0
    inner_ask, inner_tell = strategy.ask, strategy.tell

    def ask() -> Any:
        nonlocal own
        began = time.process_time()
        try:
            return inner_ask()
        finally:
            own += time.process_time() - began

    def tell(trial: Any) -> None:
        nonlocal own
        began = time.process_time()
        inner_tell(trial)
        own += time.process_time() - began

    strategy.ask, strategy.tell = ask, tell
    return simulation.search(strategy, limit), own


class Meter:
    """Counts what sensitivities cost, in batches run."""

    def __init__(self) -> None:
        self.services: list[SensitivityService] = []

    @contextlib.contextmanager
    def watch(self) -> Any:
        """Take note of every service that is made inside."""
        made, original = self.services, SensitivityService.__init__

        def noted(service: SensitivityService, *arguments: Any, **named: Any) -> None:
            original(service, *arguments, **named)
            made.append(service)

        SensitivityService.__init__ = noted  # type: ignore[method-assign]
        try:
            yield self
        finally:
            SensitivityService.__init__ = original  # type: ignore[method-assign]

    @property
    def samples(self) -> int:
        """Samples that candidates ran on for sensitivities."""
        return sum(
            s.batches_run * _rows(s.batches[0]) for s in self.services if s.batches
        )


def _rows(batch: Any) -> int:
    first = next(iter(batch.values())) if isinstance(batch, dict) else batch[0]
    return int(first.shape[0])


HEADER = (
    f"{'task':<24} {'backend':<8} {'strategy':<17} {'evals':>5} {'full':>6} {'wall':>7} "
    f"{'goal':>5} {'score':>8} {'latency':>8} {'size':>6}"
)


spent: dict[tuple[str, str, str], float] = {}
"""Full evaluations of each row, by task, backend and strategy."""


def tune(task: Any, backend: str, strategy: Any, **settings: Any) -> octavo.Result:
    """Tune and print a row."""
    name = strategy if isinstance(strategy, str) else strategy["kind"]
    began = time.perf_counter()
    meter = Meter()
    with (
        tempfile.TemporaryDirectory() as folder,
        meter.watch(),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        result = octavo.autotune(
            task.model,
            task.score,
            task.calibration,
            backends=[backend],
            arrays=True,
            strategy=strategy,
            tolerance=task.tolerance,
            storage=Path(folder) / "history.db",
            **settings,
        )
    wall = time.perf_counter() - began
    full = spent[task.name, backend, name] = (
        sum(t.evaluated for t in result.trials) + meter.samples / task.score.samples
    )
    ratios = {n: m.ratio for n, m in result.best.objectives.items()}
    cells = " ".join(
        f"{ratios[n]:>{w}.3f}" if ratios.get(n) is not None else f"{'-':>{w}}"
        for n, w in (("latency", 8), ("size", 6))
    )
    score = next(iter(result.best.metrics.values()))
    print(
        f"{task.name:<24} {backend:<8} {name:<17} {len(result.trials):>5} {full:>6.1f} "
        f"{wall:>6.1f}s {'yes' if result.goal_met else 'no':>5} "
        f"{score:>8.4f} {cells}" + ("" if result.goal_met else f"   {result.reason}"),
        flush=True,
    )
    return result


def digits() -> None:
    """Every strategy reaches the goal on all three backends, or says why not."""
    from benchmarks._tasks import digits as make

    task = make()
    print(
        f"\n{HEADER}   (baseline {task.tolerance:.0%} relative; exhaustive and samplers stop "
        "after 8)"
    )
    for backend in ("numpy", "onnx", "torch"):
        for strategy in ALL:
            tune(task, backend, strategy, max_trials=8, stop="goal", minimise="size")
        tune(
            task,
            backend,
            "budget",
            max_trials=8,
            budgets={"code_bits": 8.0},
            minimise="size",
        )


def rescaled() -> None:
    """Full int8 within 1 % in at most 4 evaluations."""
    from benchmarks._tasks import digits as make

    print(f"\n{HEADER}   bar: at most 4 evaluations")
    for spread in ("evenly", "unevenly"):
        task = make(spread)
        for backend in ("numpy", "onnx", "torch"):
            result = tune(
                task,
                backend,
                "auto",
                transforms=("equalization", "smoothquant"),
                stop="goal",
                max_trials=12,
            )
            left = [
                op
                for op, line in result.ledger.items()
                if line.applied.is_float and result.views[backend].by_name[op].weight
            ]
            print(
                f"{'':<24} in float: {', '.join(left) or 'no layer'}   "
                f"{verdict(result.goal_met and len(result.trials) <= 4 and not left)}"
            )


def retrieval() -> None:
    """MiniLM: within 0.5 % at a size of at most 0.26 and near the best latency, in few full
    evaluations; then racing on bad candidates."""
    from benchmarks._tasks import Retrieval

    task = Retrieval().task()
    began = time.perf_counter()
    print(
        f"\n{HEADER}   (budget: size {SIZE}; latency, then size, is minimised; at most {TRIALS} "
        "evaluations a row)"
    )
    for backend in ("onnx", "torch"):
        found = {}
        for strategy in ("auto", "basic", "conservative", "prefix", "bayesian", "mse"):
            found[strategy] = tune(
                task,
                backend,
                strategy,
                transforms=("smoothquant", "outlier_suppression"),
                max_trials=TRIALS,
                budgets={"size": SIZE},
            )
        auto = found["auto"]
        loss = 1 - auto.best.metrics["score"] / auto.baseline.metrics["score"]
        size = auto.best.objectives["size"].ratio or math.inf
        latency = auto.best.objectives["latency"].ratio or math.inf
        latencies = {
            n: min((_latency(t) for t in r.trials if t.passed), default=math.inf)
            for n, r in found.items()
        }
        fastest = min(latencies, key=lambda n: latencies[n])
        for text, kept in (
            (
                f"score within 0.5 % of float: {loss:+.2%} lost",
                auto.goal_met and loss <= 0.005,
            ),
            (f"size at most {SIZE}: {size:.3f}", size <= SIZE),
            (
                f"latency within 5 % of the best that any strategy measured: {latency:.3f} "
                f"against {latencies[fastest]:.3f} ({fastest})",
                latency <= 1.05 * latencies[fastest],
            ),
            (
                f"at most 10 full evaluations: {spent[task.name, backend, 'auto']:.1f}",
                spent[task.name, backend, "auto"] <= 10,
            ),
        ):
            print(f"{'':<24} {backend}, auto: {text}   {verdict(kept)}", flush=True)
    print(
        f"\n{HEADER}   (weights of 2 and 4 bits, drawn at random: racing; at most {TRIALS} "
        "evaluations)"
    )
    stored = {
        "types": ["linear"],
        "mode": "weight_only",
        "weight": {"dtype": ["int2", "int4"], "granularity": ["group:32"]},
    }
    for backend in ("onnx", "torch"):
        result = tune(
            task,
            backend,
            "random",
            max_trials=TRIALS,
            rules=[stored],
            transforms=(),
            minimise="size",
        )
        missed = [t for t in result.trials if t.state != "failed" and t.margin < 0]
        saved = statistics.mean([1 - t.evaluated for t in missed]) if missed else 0.0
        stopped = sum(t.state == "rejected" for t in missed)
        print(
            f"{'':<24} {backend}: {stopped} of {len(missed)} that miss the goal were stopped; "
            "half of their samples are saved at least: "
            f"{saved:.0%}   {verdict(bool(missed) and saved >= 0.5)}"
        )
    print(f"{'':<24} all rows: {time.perf_counter() - began:.0f} s")


def _latency(trial: octavo.Trial) -> float:
    return trial.objectives["latency"].ratio or math.inf


SIZE, TRIALS = 0.26, 8


def language() -> None:
    """Average 4.0 and 3.0 bits: perplexity better than every uniform assignment of the
    same size."""
    from benchmarks._tasks import Language

    folder = os.environ.get("OCTAVO_LM")
    if not folder:
        print("\nlanguage: left out; set OCTAVO_LM to the folder of the language model")
        return
    task = Language(Path(folder))
    batches = task.calibration()
    baseline = task.perplexity(task.model)
    whole = Subject(open_model(task.model, HOST).session.reference(), batches[0]).bytes
    accuracy = {
        "metric": "perplexity",
        "higher_is_better": False,
        "tolerance": 0.05,
        "noise_runs": 1,
    }
    print(
        f"\nlanguage model, perplexity {baseline:.3f} in float; embedding and all linear layers, "
        "scales counted in the size"
    )
    for bits in (4, 3):
        best, size = math.inf, 0.0
        for algorithm, group in (
            ("rtn", 32),
            ("hqq", 32),
            ("gptq", 32),
            ("gptq", 64),
            ("gptq", 128),
        ):
            began = time.perf_counter()
            made = octavo.quantize_model(
                task.model,
                _stored([f"int{bits}"], algorithm, [group]),
                calibration=batches,
            )
            found, taken = (
                task.perplexity(made.model),
                Subject(made.candidate, batches[0]).bytes / whole,
            )
            best, size = min(best, found), max(size, taken)
            print(
                f"{bits}.0 bits  uniform, {algorithm:<4} groups of {group:<4} {found:>9.3f} "
                f"(+{found - baseline:.3f})  "
                f"size {taken:.4f}  {time.perf_counter() - began:>6.1f} s",
                flush=True,
            )
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as where, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = octavo.autotune(
                task.model,
                task.perplexity,
                batches,
                {
                    **_stored(["int2", "int3", "int4", "int8"], "gptq", [32, 64, 128]),
                    "accuracy": accuracy,
                },
                strategy={
                    "kind": "budget",
                    "sensitivities": ["output_distance", "gradient"],
                },
                budgets={"size": size},
                minimise=[],
                storage=Path(where) / "history.db",
            )
        found = result.best.metrics["perplexity"]
        mixture = Counter(
            f"{s.weight.dtype}/{s.weight.group_size}"
            for s in result.best.recipe.schemes.values()
            if s.weight
        )
        print(
            f"{bits}.0 bits  budget, gptq               {found:>9.3f} (+{found - baseline:.3f})  "
            f"size {result.best.objectives['size'].ratio:.4f}  "
            f"{time.perf_counter() - began:>6.1f} s  {len(result.trials)} evaluations  "
            f"{dict(mixture)}   {verdict(found < best)}",
            flush=True,
        )


def _stored(dtypes: list[str], algorithm: str, groups: list[int]) -> dict[str, Any]:
    """Return settings that let every linear layer and embedding store its weights in one of some
    types, in groups."""
    weight = {"dtype": dtypes, "granularity": [f"group:{n}" for n in groups]}
    return {
        "rules": [
            {
                "types": ["linear", "embedding"],
                "mode": "weight_only",
                "weight": weight,
                "algorithm": algorithm,
            }
        ]
    }


def main(wanted: list[str]) -> int:
    tables = {
        "simulated": simulated,
        "digits": digits,
        "rescaled": rescaled,
        "retrieval": retrieval,
        "language": language,
    }
    for name in wanted or ["simulated", "digits", "rescaled"]:
        if name not in tables:
            print(f"there is no table {name!r}; there are {', '.join(tables)}")
            return 2
        tables[name]()
    return 0


if __name__ == "__main__":
    with contextlib.suppress(ImportError):
        import torch

        torch.set_num_threads(2)
    sys.exit(main(sys.argv[1:]))
