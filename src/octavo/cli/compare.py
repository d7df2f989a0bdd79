"""``octavo compare``: two results, or a result and a model, side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from octavo.core.calibration.data import rows
from octavo.core.contract.adapter import Candidate
from octavo.core.contract.objective import Subject
from octavo.core.contract.plugins import PluginHost
from octavo.core.opening.opening import open_model
from octavo.core.report import ReportData, report_data, text
from octavo.core.report.names import distinct, legend
from octavo.core.report.outcome import cost
from octavo.core.report.tables import table
from octavo.core.results.result import load_candidate, read_manifest
from octavo.core.scoring.objectives.config import LatencyConfig
from octavo.core.scoring.objectives.latency import Latency
from octavo.core.values.calls import Batch, plainest
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import FLOAT, OpScheme, in_order
from octavo.core.values.trial import Measurement, Trial

from .console import out, show_json
from .face.early import existing
from .face.options import (
    AsJson,
    BatchSize,
    Data,
    FloatModel,
    Labels,
    argument,
)
from .given.data import read_samples
from .given.models import check_model, is_result, source
from .given.scoring import SAMPLES

EXAMPLES = """
octavo compare first-quantized second-quantized
octavo compare model-quantized model.onnx --data samples.npz
octavo compare model-int8-static model-int8-dynamic --json
"""

_SIDE = "Folder of a saved result, or a model file."


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("compare", epilog=EXAMPLES)(compare)


def compare(
    a: Annotated[str, argument("A", _SIDE)],
    b: Annotated[str, argument("B", _SIDE)],
    data: Data = None,
    labels: Labels = None,
    batch_size: BatchSize = 32,
    float_model: FloatModel = None,
    as_json: AsJson = False,
) -> None:
    """Show two results, or a result and a model, side by side: score, size, latency, and the ops
    that differ.

    With --data both are timed in turns now: figures that were recorded on two occasions do not say
    which is faster.
    """
    for side in (a, b):
        check_model(side, or_result=True)
    if data is not None:
        existing(data, "--data", SAMPLES)
    if float_model is not None:
        check_model(float_model)
    sides = (Side(a, source(a)), Side(b, source(b)))
    timed = None
    if data is not None:
        samples = read_samples(data, labels)
        first = next(samples.batches(batch_size))
        batch = plainest((), first) if isinstance(first, dict) else plainest(first, {})
        in_float = source(float_model) if float_model else None
        timed = _timed(sides, batch, in_float)
    found = Comparison(*sides, timed)
    if as_json:
        show_json(found.facts())
    else:
        out().print(found.words())


@dataclass(frozen=True)
class Side:
    """One of the two.

    Attributes:
        name: As it was given.
        model: The folder of a result, the path of a model, or a model.
    """

    name: str
    model: Any

    @cached_property
    def manifest(self) -> Mapping[str, Any]:
        """What is recorded; empty for a model."""
        return read_manifest(self.model) if is_result(self.model) else {}

    @cached_property
    def record(self) -> ReportData | None:
        """The run that made it; None for a model, and for one quantized without a search."""
        return report_data(self.manifest) if "trials" in self.manifest else None

    @property
    def best(self) -> Trial | None:
        """The trial that it is."""
        if self.record is None:
            return None
        return self.record.best or self.record.baseline

    @cached_property
    def backend(self) -> str:
        """The backend of a result; of a model it is not said."""
        return str(self.manifest.get("backend", ""))

    @cached_property
    def bytes(self) -> int | None:
        """Size of its files; None for a Python object."""
        if not isinstance(self.model, Path):
            return None
        if self.model.is_file():
            return self.model.stat().st_size
        inner = self.model / "model" if is_result(self.model) else self.model
        return sum(f.stat().st_size for f in inner.rglob("*") if f.is_file())

    @property
    def latency(self) -> Measurement | None:
        """As it was recorded beside float."""
        return self.best.objectives.get("latency") if self.best else None

    @cached_property
    def recipe(self) -> Recipe | None:
        """What it was made by; None for a model."""
        if self.best is not None:
            return self.best.recipe
        if "recipe" in self.manifest:
            return Recipe.from_json(self.manifest["recipe"])
        return None

    @property
    def transforms(self) -> str:
        """Its model-wide transforms in their order; '' for none."""
        return in_order(self.recipe.transforms) if self.recipe else ""

    @cached_property
    def schemes(self) -> Mapping[str, OpScheme]:
        """Op -> what it takes, of those that are not float."""
        if self.best is not None:
            lines = self.best.ledger.items()
            taken = {op: line.applied for op, line in lines}
        else:
            taken = dict(self.recipe.schemes) if self.recipe is not None else {}
        return {op: scheme for op, scheme in taken.items() if not scheme.is_float}

    def score(self) -> tuple[str, float] | None:
        """Return the recorded score and its name."""
        if self.record is None or self.best is None:
            return None
        name = self.record.metric
        value = self.record.confirmed.get(name, self.best.metrics.get(name))
        return None if value is None else (name, value)

    def candidate(self, float_model: Any) -> Candidate:
        """Load it."""
        if is_result(self.model):
            return load_candidate(self.model, float_model)
        return open_model(self.model, PluginHost()).session.reference()


@dataclass(frozen=True)
class Timed:
    """Both, timed in turns.

    Attributes:
        a_ms: Median milliseconds of the first.
        b_ms: Of the second, such that ``b_ms * ratio`` is ``a_ms``.
        ratio: First / second, the median over the rounds.
        low: First quartile of that.
        high: Third quartile.
        samples: In a call.
    """

    a_ms: float
    b_ms: float
    ratio: float
    low: float
    high: float
    samples: int

    def words(self) -> str:
        """Return which is faster, and whether that is sure."""
        spread = f"{self.ratio:.3g} [{self.low:.3g}, {self.high:.3g}]"
        if self.low <= 1 <= self.high:
            return f"no difference that is larger than the spread (A / B = {spread})"
        faster = "A" if self.ratio < 1 else "B"
        return f"{faster} is faster (A / B = {spread})"


def _timed(sides: Sequence[Side], batch: Batch, float_model: Any) -> Timed:
    """Time both in turns on one batch."""
    with ExitStack() as stack:
        subjects = []
        for side in sides:
            subject = Subject(side.candidate(float_model), batch)
            stack.callback(subject.close)
            subjects.append(subject)
        a, b = subjects
        measured = Latency(LatencyConfig()).measure(a, b)
        samples = rows(a.batch)
    share = measured.relative
    base = measured.value / share.value
    return Timed(measured.value, base, share.value, share.low, share.high, samples)


@dataclass(frozen=True)
class Comparison:
    """Two sides and what was measured of both.

    Attributes:
        a: The first.
        b: The second.
        timed: Both timed in turns; None where no data were given.
    """

    a: Side
    b: Side
    timed: Timed | None

    def differing(self) -> list[tuple[str, OpScheme, OpScheme]]:
        """Return (op, first's scheme, second's scheme) of ops that differ."""
        names = dict.fromkeys((*self.a.schemes, *self.b.schemes))
        rows = []
        for name in names:
            one = self.a.schemes.get(name, FLOAT)
            other = self.b.schemes.get(name, FLOAT)
            if one != other:
                rows.append((name, one, other))
        return rows

    def facts(self) -> dict[str, Any]:
        """Return everything as a JSON object."""
        timed = self.timed
        return {
            "a": _side_facts(self.a),
            "b": _side_facts(self.b),
            "timed": None if timed is None else vars(timed),
            "ops": [
                {"op": op, "a": str(a), "b": str(b)} for op, a, b in self.differing()
            ],
            "exit_code": 0,
        }

    def words(self) -> RenderableType:
        """Return everything for people."""
        parts: list[RenderableType] = [self._figures()]
        if self.timed is not None:
            parts.append(Text(self.timed.words()))
        return Group(*parts, *self._ops())

    def _ops(self) -> Iterator[RenderableType]:
        """Yield the ops that differ, and what the short names of their schemes stand for."""
        differing = self.differing()
        if not differing:
            yield Text("every op takes the same scheme")
            return
        schemes = [scheme for _, a, b in differing for scheme in (a, b)]
        names = distinct(schemes)
        rows = [(op, names[a], names[b]) for op, a, b in differing]
        yield table(("op", "A", "B"), rows, title=f"{len(differing)} ops differ")
        yield table(("short", "in full"), legend(schemes))

    def _figures(self) -> RenderableType:
        a, b = self.a, self.b
        rows: list[tuple[str, ...]] = [("", a.name, b.name)]
        rows.append(("backend", a.backend or "-", b.backend or "-"))
        rows.append(("score", _score_words(a), _score_words(b)))
        rows.append(("size", _size_words(a), _size_words(b)))
        rows.append(("latency, recorded", _latency_words(a), _latency_words(b)))
        if self.timed is not None:
            now = [
                text.measured(Measurement(ms, ms, ms, "ms"))
                for ms in (self.timed.a_ms, self.timed.b_ms)
            ]
            rows.append((f"latency now, {self.timed.samples} samples", *now))
        quantized = (str(len(a.schemes)), str(len(b.schemes)))
        rows.append(("quantized ops", *quantized))
        if a.transforms or b.transforms:
            rows.append(("transforms", a.transforms or "none", b.transforms or "none"))
        return table(("", "A", "B"), rows)


def _side_facts(side: Side) -> dict[str, Any]:
    score, record = side.score(), side.record
    latency = None
    if record is not None and side.best is not None:
        latency = cost("latency", side.best, record.baseline)
    return {
        "name": side.name,
        "backend": side.backend or None,
        "score": {"metric": score[0], "value": score[1]} if score else None,
        "bytes": side.bytes,
        "latency": latency,
        "quantized_ops": len(side.schemes),
        "transforms": []
        if side.recipe is None
        else list(map(str, side.recipe.transforms)),
    }


def _latency_words(side: Side) -> str:
    """Return a recorded latency with float's of the same rounds."""
    latency = side.latency
    if latency is None:
        return "-"
    if side.best is None or not side.best.number:
        return f"{text.measured(latency)} (it is the float model)"
    return f"{text.measured(latency)} (float {text.base(latency)})"


def _score_words(side: Side) -> str:
    score = side.score()
    return "-" if score is None else f"{score[0]} {score[1]:.5g}"


def _size_words(side: Side) -> str:
    return "-" if side.bytes is None else text.size(side.bytes)
