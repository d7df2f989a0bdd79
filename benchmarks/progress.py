"""What was said to be left of three runs, and what was left: ``python -m benchmarks.progress``.

The demo's search over three backends, a search by sensitivities of an ONNX model, and one of a
NumPy graph. At a quarter, half and three quarters of each run's time the table says what the run
told and what came.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import octavo
from examples.digits import data, network

QUARTERS = (0.25, 0.5, 0.75)

ROOT = Path(__file__).resolve().parent.parent


class Record(octavo.Progress):
    """Keeps what is told of the time that is left."""

    def __init__(self) -> None:
        self.began: float | None = None
        self.ended_at = 0.0
        self.told: list[tuple[float, octavo.Phase]] = []

    def phase(self, phase: octavo.Phase) -> None:
        """Keep it with its time."""
        self.told.append((self._now(), phase))

    def closed(self) -> None:
        """Note when the run was over."""
        self.ended_at = self._now()

    def at(self, seconds: float) -> tuple[str, float | None]:
        """Return the phase that went on then, and what was said to be left."""
        then, phase = [(t, p) for t, p in self.told if t <= seconds][-1]
        step = f"{phase.name} {phase.done}/{phase.total or '?'}"
        return step, phase.left_after(seconds - then)

    def _now(self) -> float:
        now = time.perf_counter()
        if self.began is None:
            self.began = now
        return now - self.began


def accuracy() -> Callable[[Any], octavo.Evaluation]:
    """Return the demo's score."""
    digits = data()

    def score(model: octavo.ArrayModel) -> octavo.Evaluation:
        starts = range(0, len(digits.test_x), 128)
        logits = np.concatenate([model(digits.test_x[i : i + 128]) for i in starts])
        right = (logits.argmax(1) == digits.test_y).astype(float)
        return octavo.Evaluation(right.mean(), per_sample=right)

    return score


def demo(**told: Any) -> octavo.Result:
    """The search of ``make demo``."""
    return octavo.autotune(
        network(),
        accuracy(),
        calibration=data().calibration(),
        config=ROOT / "examples" / "digits.toml",
        backends=["torch", "onnx", "numpy"],
        **told,
    )


def by_sensitivities(**told: Any) -> octavo.Result:
    """A search that asks for every sensitivity, of an ONNX model of 37 ops."""
    random = np.random.default_rng(0)
    model = residual(random)
    shape = (16, 32, 32, 32)
    batches = [random.normal(size=shape).astype(np.float32) for _ in range(4)]
    return octavo.autotune(
        model,
        agreement(model, batches),
        batches,
        strategy="prefix",
        minimise=["size"],
        tolerance=0.0005,
        max_trials=20,
        higher_is_better=True,
        arrays=True,
        **told,
    )


def residual(random: np.random.Generator, blocks: int = 12) -> Any:
    """Return an ONNX model of residual blocks: a convolution, a ReLU and a sum in each."""
    from onnx import TensorProto, helper, numpy_helper

    nodes, weights, value = [], [], "x"
    for block in range(blocks):
        kernel = random.normal(size=(32, 32, 3, 3), scale=0.06).astype(np.float32)
        weights.append(numpy_helper.from_array(kernel, f"w{block}"))
        conv, relu, total = (f"{name}{block}" for name in ("conv", "relu", "sum"))
        nodes += [
            helper.make_node("Conv", [value, f"w{block}"], [conv], pads=[1] * 4),
            helper.make_node("Relu", [conv], [relu]),
            helper.make_node("Add", [value, relu], [total]),
        ]
        value = total
    nodes.append(helper.make_node("GlobalAveragePool", [value], ["y"]))
    shape = ["n", 32, 32, 32]
    graph = helper.make_graph(
        nodes,
        "residual",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 32, 1, 1])],
        weights,
    )
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=9)


def agreement(model: Any, batches: list[np.ndarray]) -> Callable[[Any], float]:
    """Return a score: how near a candidate's outputs are to the float model's."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString())
    expected = [session.run(None, {"x": batch})[0] for batch in batches]

    def score(candidate: Any) -> float:
        pairs = zip(batches, expected, strict=True)
        errors = [float(np.square(candidate(x) - y).mean()) for x, y in pairs]
        return 1.0 - sum(errors) / sum(float(y.var()) for y in expected)

    return score


def on_numpy(**told: Any) -> octavo.Result:
    """The default search, on the graph of NumPy operations."""
    return octavo.autotune(
        network(),
        accuracy(),
        calibration=data().calibration(),
        backends=["numpy"],
        metric="accuracy",
        higher_is_better=True,
        minimise=["latency", "size"],
        strategy="random",
        max_trials=10,
        **told,
    )


RUNS: dict[str, Callable[..., octavo.Result]] = {
    "demo": demo,
    "sensitivities": by_sensitivities,
    "numpy": on_numpy,
}


def measured(name: str) -> Record:
    """Run a search and return what it told."""
    record = Record()
    with tempfile.TemporaryDirectory() as folder:
        RUNS[name](storage=Path(folder) / "history.db", callbacks=(record,))
    return record


def table(records: dict[str, Record]) -> Table:
    """Return what was said and what came."""
    drawn = Table("run", "seconds", "at", "phase", "said", "came", "off by")
    for name, record in records.items():
        whole = record.ended_at
        for share in QUARTERS:
            step, said = record.at(share * whole)
            came = (1 - share) * whole
            off = "" if said is None else f"{said / came - 1:+.0%}"
            told = "unknown" if said is None else f"{said:.1f}"
            row = (name, f"{whole:.1f}", f"{share:.0%}", step, told, f"{came:.1f}", off)
            drawn.add_row(*row)
    return drawn


def main() -> None:
    """Run what is named, or everything, and print the table."""
    names = sys.argv[1:] or list(RUNS)
    Console(width=100).print(table({name: measured(name) for name in names}))


if __name__ == "__main__":
    main()
