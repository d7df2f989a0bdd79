"""What a report tells, gathered from a result before any of it is drawn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from octavo.core.scoring.front import FrontPoint
from octavo.core.values.coverage import Coverage
from octavo.core.values.layers import Layer
from octavo.core.values.ledger import Applied
from octavo.core.values.trial import Trial


@dataclass(frozen=True, slots=True)
class OpLine:
    """One op of the best model.

    Attributes:
        name: The op's name.
        type: Its type in the neutral vocabulary.
        parameters: Number of weight elements.
        line: Its line of the ledger.
    """

    name: str
    type: str
    parameters: int
    line: Applied

    @property
    def is_float(self) -> bool:
        """True if it runs in float; one that only moves codes does not."""
        return self.line.applied.is_float and not self.line.carries_codes

    @property
    def applied(self) -> str:
        """What runs, in words."""
        if self.line.carries_codes:
            return "carries codes"
        return str(self.line.applied)

    @property
    def why_float(self) -> str:
        """Why it runs in float."""
        if self.line.reason:
            return self.line.reason
        if self.line.requested.is_float:
            return "the search kept it in float"
        return "not carried out"


@dataclass(frozen=True)
class ReportData:
    """A finished run, as a reader sees it.

    Attributes:
        title: Heading.
        goal_met: Whether the model that was handed back meets the goal.
        reason: One line on why the run ended as it did.
        goal: The goal in words.
        metric: Name of the metric on the accuracy axis.
        higher_is_better: Its direction.
        bound: The least (or greatest) score that passes, or None.
        baseline: The float model.
        best: The best trial; None if none completed.
        trials: All trials after the baseline.
        floats: The float model on other backends than the baseline's, by name.
        confirmed: The best model's scores after it was saved and loaded again; empty where that was
            turned off.
        holdout: (float model's, best model's) scores on data that the search never saw; None where
            none was held out.
        certificate: How sure the goal is on new data, in one line; empty where that was not asked
            for.
        pareto: Numbers of the trials that no other trial beats in everything.
        ops: The best model, op by op.
        notes: Remarks of the backends and of the space.
        command: How to run it again.
        settings: Setting -> value, for the record.
        defaults: Names of the settings that nobody chose.
        versions: Package -> version.
        created: When, in UTC, ISO 8601.
        coverage: Which weights of the best model are quantized; empty for results of versions that
            did not count.
        why_best: Why this trial and no other, in one sentence.
        layers: Op -> its figures in the best model and in the float model.
        machine: Where it was measured.
        data: What calibrated, scored and timed.
        final: The last timing of the best few in turns.
        remarks: What was told while the run went on.
        front: Size against loss, by size.
        inputs: Name, type and shape of what the best model takes; empty where that is not known.
    """

    title: str
    goal_met: bool
    reason: str
    goal: str
    metric: str
    higher_is_better: bool
    bound: float | None
    baseline: Trial
    best: Trial | None
    trials: Sequence[Trial]
    floats: Mapping[str, Trial] = field(default_factory=dict)
    confirmed: Mapping[str, float] = field(default_factory=dict)
    holdout: tuple[Mapping[str, float], Mapping[str, float]] | None = None
    certificate: str = ""
    pareto: frozenset[int] = frozenset()
    ops: Sequence[OpLine] = ()
    notes: Sequence[str] = ()
    command: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    defaults: frozenset[str] = frozenset()
    versions: Mapping[str, str] = field(default_factory=dict)
    created: str = ""
    coverage: Coverage = field(default_factory=Coverage)
    why_best: str = ""
    layers: Mapping[str, Layer] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    final: Mapping[str, Any] = field(default_factory=dict)
    remarks: Sequence[str] = ()
    front: Sequence[FrontPoint] = ()
    inputs: Sequence[tuple[str, str, tuple[int | None, ...] | None]] = ()

    @property
    def kept_float(self) -> bool:
        """True if the result is the float model, because nothing that reaches the goal
        is a gain."""
        return self.goal_met and self.best is None

    @property
    def verdict(self) -> str:
        """The outcome in a few words."""
        if self.kept_float:
            return "the float model is kept"
        return "goal reached" if self.goal_met else "goal not reached"

    @property
    def conclusion(self) -> str:
        """The sentence that a reader takes away: why this model, or why the goal was missed."""
        if self.goal_met and self.why_best:
            return self.why_best
        return self.reason

    @property
    def has_losses(self) -> bool:
        """True if a loss is believed of some point of the front: without one, the front tells
        nothing that the trials do not."""
        return any(point.loss is not None for point in self.front)

    @cached_property
    def left_in_float(self) -> tuple[tuple[str, str, tuple[str, ...], int], ...]:
        """Rows (op type, why, names, parameters) of what runs in float, largest first."""
        groups: dict[tuple[str, str], list[OpLine]] = {}
        for op in self.ops:
            if op.is_float:
                group = (op.type, op.why_float)
                groups.setdefault(group, []).append(op)
        rows = []
        for (kind, why), ops in groups.items():
            names = tuple(op.name for op in ops)
            parameters = sum(op.parameters for op in ops)
            rows.append((kind, why, names, parameters))
        return tuple(sorted(rows, key=lambda row: (-row[3], row[0])))

    @cached_property
    def schemes(self) -> tuple[tuple[str, str, int, int], ...]:
        """Rows (scheme, realization, ops, parameters) of what runs, most parameters first."""
        count: Counter[tuple[str, str]] = Counter()
        size: Counter[tuple[str, str]] = Counter()
        for op in self.ops:
            realization = "" if op.is_float else str(op.line.realization)
            key = (op.applied, realization)
            count[key] += 1
            size[key] += op.parameters
        largest_first = sorted(count, key=lambda key: (-size[key], key))
        return tuple((*key, count[key], size[key]) for key in largest_first)

    @property
    def scores(self) -> tuple[tuple[str, float, float | None], ...]:
        """Rows (what, float model's score, best model's score): the search's, after a reload, on
        data held out."""
        own = self.baseline.metrics
        best = self.best.metrics if self.best is not None else {}
        rows = [(name, value, best.get(name)) for name, value in own.items()]
        for name, value in self.confirmed.items():
            if name in own:
                rows.append((f"{name}, saved and loaded again", own[name], value))
        if self.holdout is not None:
            own_held_out, best_held_out = self.holdout
            for name, value in own_held_out.items():
                what = f"{name}, on data held out"
                rows.append((what, value, best_held_out.get(name)))
        return tuple(rows)

    @property
    def completed(self) -> tuple[Trial, ...]:
        """Trials that were measured to the end."""
        complete = [trial for trial in self.trials if trial.state == "complete"]
        return tuple(trial for trial in complete if self.metric in trial.metrics)
