"""What a report tells, gathered from a result before any of it is drawn."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version

from ..adapter import Applied
from ..trial import Trial


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
        """True if it runs in float."""
        return self.line.applied.is_float

    @property
    def why_float(self) -> str:
        """Why it runs in float."""
        if self.line.reason:
            return self.line.reason
        return "the search kept it in float" if self.line.requested.is_float else "not carried out"


@dataclass(frozen=True)
class ReportData:
    """A finished run, as a reader sees it.

    Attributes:
        title: Heading.
        goal_met: Whether the best trial passed.
        reason: One line on why the run ended as it did.
        goal: The goal in words.
        metric: Name of the metric on the accuracy axis.
        higher_is_better: Its direction.
        bound: The least (or greatest) score that passes, or None.
        baseline: The float model.
        best: The best trial; None if none completed.
        trials: All trials after the baseline.
        pareto: Numbers of the trials that no other trial beats in everything.
        ops: The best model, op by op.
        notes: Remarks of the backends and of the space.
        command: How to run it again.
        settings: Setting -> value, for the record.
        versions: Package -> version.
        created: When, in UTC, ISO 8601.
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
    pareto: frozenset[int] = frozenset()
    ops: Sequence[OpLine] = ()
    notes: Sequence[str] = ()
    command: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    created: str = ""

    @cached_property
    def left_in_float(self) -> tuple[tuple[str, str, tuple[str, ...], int], ...]:
        """Rows (op type, why, names, parameters) of what runs in float, largest first."""
        groups: dict[tuple[str, str], list[OpLine]] = {}
        for op in self.ops:
            if op.is_float:
                groups.setdefault((op.type, op.why_float), []).append(op)
        rows = [(kind, why, tuple(o.name for o in ops), sum(o.parameters for o in ops)) for (kind, why), ops in groups.items()]
        return tuple(sorted(rows, key=lambda row: (-row[3], row[0])))

    @cached_property
    def schemes(self) -> tuple[tuple[str, str, int, int], ...]:
        """Rows (scheme, realization, ops, parameters) of what runs, most parameters first."""
        count: Counter[tuple[str, str]] = Counter()
        size: Counter[tuple[str, str]] = Counter()
        for op in self.ops:
            key = (str(op.line.applied), "" if op.is_float else op.line.realization)
            count[key] += 1
            size[key] += op.parameters
        return tuple((s, r, n, size[s, r]) for (s, r), n in sorted(count.items(), key=lambda kv: (-size[kv[0]], kv[0])))

    @property
    def completed(self) -> tuple[Trial, ...]:
        """Trials that were measured to the end."""
        return tuple(t for t in self.trials if t.state == "complete" and self.metric in t.metrics)


PACKAGES = ("octavo", "numpy", "torch", "onnx", "onnxruntime", "onnx-ir", "scikit-learn", "transformers", "optuna")


def environment() -> dict[str, str]:
    """Return the versions that a figure depends on: Python, the processor, and the packages that are installed."""
    found = {"python": platform.python_version(), "machine": f"{platform.system()} {platform.machine()}"}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
