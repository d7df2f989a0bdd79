"""What a reader of a result does next: loads the model, or tries a setting that may help."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import starmap
from pathlib import Path
from typing import Any

from octavo.core.values.trial import Trial

from . import text
from .combining import untried_combinations
from .loading_code import MODEL, loading_code, model_file, near
from .model import ReportData
from .trial_tables import worse_figures, worse_than_float

_MOST = 5
"""Ops that are named as the dearest: those after them matter less, and a reader forgets them."""

_KEPT = 3
"""Of these, how many are proposed to stay float at first: each one costs time and bytes."""

_MOST_OF_BUDGET = {"size": 1.0, "latency": 1.0}
"""The float model's own figures: a budget above them limits nothing. Others are bits of 32."""

_LEARNS = ("torch",)
"""Backends that learn from data."""

_FEW_SAMPLES = 100
"""Calibration samples below which more of them are proposed: 100 to 500 are usual."""


@dataclass(frozen=True, slots=True)
class Step:
    """Something to try.

    Attributes:
        what: What it does, in one sentence.
        toml: The setting, to be pasted into a configuration; '' where it is none.
    """

    what: str
    toml: str = ""


@dataclass(frozen=True, slots=True)
class CostlyOp:
    """An op that costs accuracy.

    Attributes:
        name: The op.
        cost: How much.
        unit: Of what.
    """

    name: str
    cost: float
    unit: str


@dataclass(frozen=True)
class NextSteps:
    """What a reader does next.

    Attributes:
        file: The model's file; None where the result is not saved.
        code: Lines that load the model and run it.
        warnings: Where the result, or a trial that passed, is worse than the float model.
        costly: The ops that cost most accuracy, where the goal was missed.
        steps: What to try.
    """

    file: str | None = None
    code: str = ""
    warnings: tuple[str, ...] = ()
    costly: tuple[CostlyOp, ...] = ()
    steps: tuple[Step, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return them JSON-ready."""
        costly = [
            {"op": op.name, "cost": op.cost, "unit": op.unit} for op in self.costly
        ]
        steps = [{"what": step.what, "toml": step.toml} for step in self.steps]
        return {
            "file": self.file,
            "code": self.code,
            "warnings": list(self.warnings),
            "costly_ops": costly,
            "try": steps,
        }


def next_steps(data: ReportData, folder: str | Path | None = None) -> NextSteps:
    """Return what a reader of a run does next.

    Args:
        data: The run.
        folder: Where its result is saved; None where it is not.
    """
    backend = (data.best or data.baseline).recipe.adapter
    place = None if folder is None else Path(folder)
    file = None if place is None else model_file(place / MODEL)
    is_missed = not data.goal_met
    return NextSteps(
        file=None if file is None else near(file),
        code=loading_code(backend, place, data.inputs),
        warnings=tuple(_warnings(data)),
        costly=costly_ops(data) if is_missed else (),
        steps=tuple(_after_a_miss(data) if is_missed else _after_float(data)),
    )


def _warnings(data: ReportData) -> Iterator[str]:
    """Yield where a model that was found is worse than the float model."""
    best = data.best
    if best is not None:
        worse = worse_than_float(best)
        if worse:
            dearer = worse_figures(best)
            figures = [f"{name} {text.pair(m)}" for name, m in dearer.items()]
            yield f"the result is {worse}: {', '.join(figures)}"
    number = best.number if best else 0
    others = [t for t in data.trials if t.passed and t.number != number]
    worse_ones = [trial for trial in others if worse_than_float(trial)]
    if worse_ones:
        named = ", ".join(f"#{trial.number}" for trial in worse_ones[:_MOST])
        more = " ..." if len(worse_ones) > _MOST else ""
        yield (
            f"{len(worse_ones)} of {len(others)} other trials that pass are slower or larger than "
            f"float ({named}{more}): passing is about the score"
        )


def costly_ops(data: ReportData) -> tuple[CostlyOp, ...]:
    """Return the ops of the best model that cost most accuracy, the dearest first.

    By the sensitivities that were computed; where there are none, by the trials: how much better
    those did that kept the op in float.
    """
    found = _by_sensitivity(data) or _by_trials(data)
    ranked = sorted(found, key=lambda op: (-op.cost, op.name))
    return tuple(ranked[:_MOST])


def _by_sensitivity(data: ReportData) -> list[CostlyOp]:
    found = []
    quantized = {op.name for op in data.ops if not op.is_float}
    for name, layer in data.layers.items():
        loss = layer.sensitivity
        is_known = loss is not None and math.isfinite(loss) and loss > 0
        if loss is not None and is_known and name in quantized:
            found.append(CostlyOp(name, loss, layer.kind.replace("_", " ")))
    return found


def _by_trials(data: ReportData) -> list[CostlyOp]:
    """Return what trials tell: the mean score of those that quantize an op beside the others'."""
    if data.best is None:
        return []
    backend = data.best.recipe.backend
    trials = [t for t in data.completed if t.recipe.backend == backend]
    found = []
    for op in data.best.recipe.schemes:
        kept = [_goodness(t, data) for t in trials if op not in t.recipe.schemes]
        taken = [_goodness(t, data) for t in trials if op in t.recipe.schemes]
        if not kept or not taken:
            continue
        cost = sum(kept) / len(kept) - sum(taken) / len(taken)
        if cost > 0:
            found.append(CostlyOp(op, cost, f"{data.metric}, by the trials"))
    return found


def _goodness(trial: Trial, data: ReportData) -> float:
    value = trial.metrics[data.metric]
    return value if data.higher_is_better else -value


def _after_a_miss(data: ReportData) -> Iterator[Step]:
    """Yield what to try where the goal was not reached, the likeliest first."""
    closest = data.best
    costly = costly_ops(data)
    if costly:
        names = [op.name for op in costly[:_KEPT]]
        yield Step(
            "keep the ops that cost most in float", _rule(names, 'keep = "float"')
        )
    if closest is not None:
        yield from _learning(closest, data)
        yield from starmap(Step, untried_combinations(closest, data))
        yield from _other_schemes(closest, data)
        yield from _looser(closest, data)
    calibrated = _calibration_samples(data)
    if calibrated is not None and calibrated < _FEW_SAMPLES:
        yield Step(
            f"calibrate with more samples: {calibrated} did, and 100 to 500 are usual"
        )
    searched = [trial for trial in data.trials if not trial.recipe.recovery]
    if len(searched) >= _max_trials(data):
        more = f"max_trials = {2 * max(1, len(searched))}"
        yield Step("search longer: all trials were used up", more)


def _learning(closest: Trial, data: ReportData) -> Iterator[Step]:
    """Yield what may be learned from data, where nothing was and the backend can."""
    was_tried = any(trial.recipe.recovery for trial in data.trials)
    if was_tried or closest.recipe.adapter not in _LEARNS:
        return
    modes = {scheme.mode for scheme in closest.recipe.schemes.values()}
    if "weight_only" in modes:
        yield Step(
            "let the closest trials learn their rounding and scales from the calibration data",
            'recover = ["reconstruction", "distillation"]',
        )
    yield Step(
        "train the closest trials: hand octavo.autotune a function that trains the model it is "
        "given, train_fn="
    )


def _other_schemes(closest: Trial, data: ReportData) -> Iterator[Step]:
    """Yield rules that give the quantized ops schemes which keep more."""
    types = {op.name: op.type for op in data.ops}
    schemes = closest.recipe.schemes
    static = {
        types.get(op, "") for op, scheme in schemes.items() if scheme.mode == "static"
    }
    if "linear" in static:
        yield Step(
            "find the activations' ranges at run time: nothing is clipped",
            _rule_of_types(["linear"], 'mode = ["dynamic"]'),
        )
    narrow = [s.weight for s in schemes.values() if s.weight and s.weight.bits < 8]
    if narrow:
        yield Step(
            "keep weights in 8 bits",
            '[[rules]]\nweight = { dtype = ["int8", "uint8"] }',
        )


def _looser(closest: Trial, data: ReportData) -> Iterator[Step]:
    """Yield the tolerance or the budgets with which the closest trial would pass."""
    needed = _needed_tolerance(closest, data)
    if needed is not None:
        yield Step(
            f"accept more loss: trial {closest.number} passes with this tolerance, if its loss is "
            "one that you can bear",
            f"[accuracy]\ntolerance = {needed:g}",
        )
    limits = []
    for budget, share in closest.over.items():
        allowed = _number(data.settings.get(f"budgets.{budget}"))
        if allowed is None or not math.isfinite(share):
            continue
        needed = _rounded_up(allowed * share)
        if needed <= _MOST_OF_BUDGET.get(budget, 32.0):
            limits.append(f"{budget} = {needed:g}")
    if limits:
        yield Step(
            f"allow more: trial {closest.number} keeps these limits",
            "\n".join(["[budgets]", *limits]),
        )


def _needed_tolerance(closest: Trial, data: ReportData) -> float | None:
    """Return the tolerance that the closest trial meets; None where it is no matter of that."""
    own = data.baseline.metrics.get(data.metric)
    found = closest.metrics.get(data.metric)
    has_several = any(key.startswith("accuracy.metrics.") for key in data.settings)
    if own is None or found is None or data.bound is None or has_several:
        return None
    loss = own - found if data.higher_is_better else found - own
    allowed = own - data.bound if data.higher_is_better else data.bound - own
    is_relative = data.settings.get("accuracy.mode", "relative") == "relative"
    if is_relative and not own:
        return None
    unit = abs(own) if is_relative else 1.0
    # A trial that was refused later is within the tolerance: another one would not help it.
    return _rounded_up(loss / unit) if loss > allowed else None


def _rounded_up(value: float) -> float:
    """Return a positive figure with two digits, rounded up."""
    step = 10.0 ** (math.floor(math.log10(value)) - 1)
    up = math.ceil(value / step * (1 - 1e-12)) * step
    return float(f"{up:.3g}")


def _after_float(data: ReportData) -> Iterator[Step]:
    """Yield what to try where the float model was kept: nothing that passes was a gain."""
    if not data.kept_float:
        return
    smaller = [t for t in data.trials if t.passed and _is_smaller(t)]
    if smaller:
        yield Step(
            f"take fewer bytes: {len(smaller)} trials that pass are smaller than float",
            '[objective]\nminimise = ["size"]',
        )


def _is_smaller(trial: Trial) -> bool:
    size = trial.objectives.get("size")
    return size is not None and size.ratio is not None and size.ratio < 1


def _calibration_samples(data: ReportData) -> int | None:
    """Return how many samples calibrated, where the record says that."""
    found = data.data.get("calibration")
    count = found.get("samples") if isinstance(found, Mapping) else None
    return count if isinstance(count, int) else None


def _max_trials(data: ReportData) -> float:
    found = _number(data.settings.get("max_trials"))
    # The default of the configuration, which a record leaves out.
    return 50 if found is None else found


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _rule(ops: Sequence[str], says: str) -> str:
    return f"[[rules]]\nops = {_toml_list(ops)}\n{says}"


def _rule_of_types(types: Sequence[str], says: str) -> str:
    return f"[[rules]]\ntypes = {_toml_list(types)}\n{says}"


def _toml_list(values: Sequence[str]) -> str:
    # JSON's texts are TOML's, but for one sign that TOML wants escaped.
    told = json.dumps(list(values), ensure_ascii=False)
    return told.replace("\x7f", "\\u007f")
