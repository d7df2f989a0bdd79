"""Runs made by hand, for tests of the page: every kind of figure, and names of the worst kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser

from octavo.core.report import OpLine, ReportData
from octavo.core.scoring.front import FrontPoint, Kind, with_unbeaten
from octavo.core.values.layers import Layer
from octavo.core.values.ledger import Applied
from octavo.core.values.recipe import Recipe
from octavo.core.values.sampling import Sampling
from octavo.core.values.scheme import FLOAT, OpScheme, QuantSpec
from octavo.core.values.trial import Measurement, Trial

INT8 = OpScheme(
    mode="static",
    weight=QuantSpec(dtype="int8", granularity="channel"),
    input=QuantSpec(dtype="uint8", symmetric=False),
)
INT4 = OpScheme(
    mode="weight_only", weight=QuantSpec(dtype="int4", granularity="group:32")
)
HOSTILE = "</script><script>document.title='owned'</script> & \"$x_1$\" 'conv'[0]"
RIGHT_TO_LEFT = "\u202e\u05e9\u05dc\u05d5\u05dd/conv"
LONG = "x" * 300
BACKENDS = ("onnx", "torch", "numpy")


def measured(latency: float, size: float) -> dict[str, Measurement]:
    low, high = latency * 0.97, latency * 1.04
    return {
        "latency": Measurement(latency, low, high, "ms", latency / 4.0),
        "size": Measurement(size, size, size, "bytes", size / 800_000),
    }


def names(ops: int, hostile: bool = True) -> list[str]:
    found = [f"/features/layer.{i}/conv_{i}/Conv" for i in range(ops)]
    if hostile:
        worst = (HOSTILE, RIGHT_TO_LEFT, LONG)
        found[1 : 1 + len(worst)] = worst
    return found[:ops]


def op_lines(ops: int, hostile: bool = True) -> list[OpLine]:
    lines = []
    for i, name in enumerate(names(ops, hostile)):
        line = Applied(INT8, INT8)
        if i == 0:
            line = Applied(INT8, FLOAT, "kernel", "no integer kernel takes 3-D input")
        if i == 5:
            line = Applied(FLOAT, FLOAT, "codes", "moves the codes of its input")
        lines.append(OpLine(name, "conv", 9 * 64 * (i + 1), line))
    return lines


def layers(lines: list[OpLine]) -> Mapping[str, Layer]:
    return {
        op.name: Layer(
            sensitivity=0.001 * ((7 * i) % 11),
            kind="output_distance",
            scheme=str(INT4 if i == 2 else INT8),
            error=2e-5 * (i % 5 + 1),
            ms=0.01 * (i % 9 + 1),
            float_ms=0.03 * (i % 9 + 1),
            bytes=op.parameters + 64,
            float_bytes=4 * op.parameters,
        )
        for i, op in enumerate(lines)
    }


def trial(number: int, recipe: Recipe, lines: list[OpLine]) -> Trial:
    score = 0.9958 - 0.003 * (number % 6)
    return Trial(
        number,
        replace(recipe, backend=BACKENDS[number % 3]),
        metrics={"accuracy": score},
        passed=number % 6 < 4,
        margin=0.1,
        objectives=measured(1.2 + 0.3 * number, 220_000 + 9_000 * number),
        ledger={op.name: op.line for op in lines},
        seconds={"evaluate": 0.31, "measure": 0.2},
        sampling={"accuracy": Sampling(719, score - 0.01, score + 0.004, True)},
    )


def run(ops: int = 8, trials: int = 9, hostile: bool = True) -> ReportData:
    """A run with everything that a result of this version records."""
    lines = op_lines(ops, hostile)
    every = [line.name for line in lines if not line.line.carries_codes]
    whole = Recipe(dict.fromkeys(every, INT8))
    other = Recipe({**whole.schemes, every[-1]: INT4, every[-2]: FLOAT})
    baseline = Trial(
        0,
        Recipe({}, (), "onnx"),
        metrics={"accuracy": 0.9958},
        passed=True,
        margin=1.0,
        objectives={
            name: replace(found, ratio=None)
            for name, found in measured(4.4, 800_000).items()
        },
        sampling={"accuracy": Sampling(719, 0.98, 0.9985, True)},
    )
    tried = [trial(i, other if i % 2 else whole, lines) for i in range(1, trials)]
    if trials:
        error = f"Traceback (most recent call last):\n  ValueError: {HOSTILE}"
        tried.append(
            Trial(trials, replace(whole, backend="onnx"), "failed", error=error)
        )
    best = next((t for t in tried if t.number == 3), None)
    return ReportData(
        title="digits.onnx",
        goal_met=best is not None,
        reason="8 trials were used up",
        goal="accuracy >= 0.98584",
        metric="accuracy",
        higher_is_better=True,
        bound=0.98584,
        baseline=baseline,
        best=best,
        trials=tried,
        pareto=frozenset({1, 3}),
        ops=lines if best else (),
        notes=("softmax has no int8 scheme on this device",),
        command="octavo tune digits.onnx --data digits.npz --metric accuracy --seed 0",
        settings={"strategy": "auto", "seed": "0"},
        defaults=frozenset({"seed"}),
        versions={"python": "3.11", "octavo": "0.1.0"},
        created="2026-01-01T00:00:00Z",
        why_best="Trial 3 is the fastest of those that reach the goal.",
        layers=layers(lines),
        machine={
            "cpu": "Xeon",
            "governor": None,
            "memory_bytes": 8_590_000_000,
            "load": {"before": 0.4},
        },
        data={"calibration": {"batches": 4}, "timing": {"batch_size": 128}},
        final={}
        if best is None
        else {
            "rounds": 40,
            "trials": [3, 1],
            "ties": [],
            "decided": True,
            "load": {},
            "said": "Trial 3 is faster than trial 1 in 40 rounds.",
        },
        remarks=("the machine was busy",),
        front=front(baseline, tried, whole),
    )


def front(
    baseline: Trial, tried: Sequence[Trial], recipe: Recipe
) -> Sequence[FrontPoint]:
    """Points of every kind: trials with and without a believed loss, usual widths, and sizes that
    nobody tried."""
    done = [t for t in (baseline, *tried) if t.state == "complete"]
    points = []
    for trial in done:
        size = trial.objectives["size"].value
        loss = None if trial.number % 4 == 3 else 0.02 / (1 + trial.number)
        if not trial.number:
            loss = 0.0
        scores, passed = trial.metrics, trial.passed
        points.append(_point("trial", size, loss, trial.recipe, scores, trial, passed))
    for bits in (2, 4):
        uniform = OpScheme(
            mode="weight_only",
            weight=QuantSpec(dtype=f"int{bits}", granularity="group:32"),
        )
        own = Recipe(dict.fromkeys(recipe, uniform))
        points.append(_point("uniform", 90_000.0 * bits, 0.5 / bits**3, own))
    sizes = (150_000.0, 190_000.0, 260_000.0, 420_000.0)
    points += [_point("believed", size, 9e14 / size**3, recipe) for size in sizes]
    return with_unbeaten(points)


def _point(
    kind: Kind,
    size: float,
    loss: float | None,
    recipe: Recipe,
    scores: Mapping[str, float] | None = None,
    trial: Trial | None = None,
    passed: bool | None = None,
) -> FrontPoint:
    number = trial.number if trial is not None else None
    found = {"accuracy": 0.0} if scores is None else scores
    return FrontPoint(
        kind,
        size,
        size / 800_000,
        size / 26_000,
        loss,
        recipe,
        sensitivity="gradient",
        trial=number,
        scores=found if number is not None else {},
        passed=passed,
    )


def earlier(data: ReportData) -> ReportData:
    """The same run as a result of an earlier version records it."""
    return replace(
        data,
        why_best="",
        layers={},
        machine={},
        data={},
        final={},
        remarks=(),
        front=(),
        defaults=frozenset(),
        baseline=replace(data.baseline, sampling={}),
        trials=[replace(t, sampling={}) for t in data.trials],
        best=None if data.best is None else replace(data.best, sampling={}),
    )


class Page(HTMLParser):
    """Collects what a check needs; an unbalanced page fails."""

    VOID = frozenset(("meta", "link", "input", "br", "hr", "img", "wbr"))

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.pieces: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        self.ids += [v for k, v in attrs if k == "id" and v]
        self.references += [
            v for k, v in attrs if k in ("href", "src", "xlink:href") and v
        ]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, text: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.pieces.append(text)

    @property
    def text(self) -> str:
        """What is read, names in one piece."""
        return "".join(self.pieces)
