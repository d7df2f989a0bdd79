"""What a run hands back: the best model with the evidence."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.core.errors import ConfigError, nearest
from octavo.core.opening.config import TuningConfig
from octavo.core.scoring.certificate import Certificate
from octavo.core.scoring.choice import choose, pareto
from octavo.core.scoring.scoring import Holdout
from octavo.core.system.redaction import redacted
from octavo.core.values.graph import ModelView
from octavo.core.values.layers import Layer
from octavo.core.values.recipe import adapter_of
from octavo.core.values.trial import Trial

from . import shown
from .frame import trials_frame
from .front import Front
from .ledger import Trials
from .loading import load_candidate, read_manifest
from .quantized import Quantized
from .saving import MANIFEST, MODEL, check_target, environment, save_candidate

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Result(Quantized):
    """The outcome of a tuning run.

    Attributes:
        goal_met: Whether the model meets the goal: a trial that passed and is a gain, or the float
            model where none is.
        reason: Why the search ended and, where the goal was missed, by how much.
        best: The winner's trial; the baseline where nothing could be quantized, or what was is no
            gain.
        baseline: The float model's trial, on the backend that everything is measured against.
        floats: Backend -> the float model's trial on it, of those beside the baseline's: what the
            runtime alone gains.
        trials: All trials, without the baseline.
        config: The settings.
        goal: The goal in one line.
        confirmed: The winner's metrics after it was saved, loaded and scored again; None if that
            was turned off.
        holdout: The winner's and the float model's scores on data that the search never saw, where
            some was held out.
        certificate: How sure it is that the winner keeps the goal on new data, where
            ``accuracy.confidence`` asked for that.
        views: Backend -> the model's ops.
        fixed: Backend -> op -> why no scheme could be chosen for it.
        storage: Where the history is kept.
        interrupted: Whether a signal ended the search.
        seconds: Wall time of the whole run.
        command: How to run it again, where the command line started it.
        why_best: Why this trial and no other, in one sentence.
        layers: Op -> its figures in the best model and in the float model.
        machine: Where it was measured: processor, cores, threads, instruction sets, load, ...
        data: What calibrated, scored and timed: counts of batches and samples, shapes.
        final: The last timing of the best few in turns: rounds, trials, ties, load; empty where
            there was none.
        remarks: What was told while the run went on.
        front: Size against loss, by size: the trials, the least losses that are believed of other
            sizes, and one width for every op; each point has its recipe.
    """

    goal_met: bool = False
    reason: str = ""
    best: Trial = field(kw_only=True)
    baseline: Trial = field(kw_only=True)
    floats: Mapping[str, Trial] = field(default_factory=dict)
    trials: tuple[Trial, ...] = ()
    config: TuningConfig = field(default_factory=TuningConfig)
    goal: str = ""
    confirmed: Mapping[str, float] | None = None
    holdout: Holdout | None = None
    certificate: Certificate | None = None
    views: Mapping[str, ModelView] = field(default_factory=dict)
    fixed: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    storage: str = ""
    interrupted: bool = False
    seconds: float = 0.0
    command: str = ""
    why_best: str = ""
    layers: Mapping[str, Layer] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    final: Mapping[str, Any] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    front: Front = field(default_factory=Front)

    def __post_init__(self) -> None:
        # They print as a table, and are a tuple to whoever takes them for one.
        object.__setattr__(self, "trials", Trials(self.trials))

    @property
    def view(self) -> ModelView | None:
        """The model's ops on the best trial's backend; None where they are not known."""
        return self.views.get(self.best.recipe.backend)

    @property
    def objectives(self) -> tuple[str, ...]:
        """Names of what was minimised, most important first."""
        return tuple(self.baseline.objectives)

    @property
    def pareto(self) -> tuple[Trial, ...]:
        """Trials that no other one beats in accuracy and every objective at once."""
        return Trials(pareto(self.trials, self.objectives))

    def best_of(self, backend: str) -> Trial | None:
        """Return the best trial of a backend that passes; None where none does.

        Args:
            backend: ``onnx`` for all of its settings that were searched, ``onnx(threads=1)`` for
                one of them.

        Raises:
            ConfigError: If the run had no such backend.
        """
        tried = {trial.recipe.backend for trial in self.trials}
        named = tried | set(self.views)
        known = sorted(named | set(map(adapter_of, named)))
        if backend not in known:
            raise ConfigError(
                f"this run had no backend {backend!r}{nearest(backend, known)}; "
                f"it had {', '.join(known)}"
            )
        own = [
            trial
            for trial in self.trials
            if backend in (trial.recipe.backend, trial.recipe.adapter)
        ]
        return choose(own, self.objectives)

    def trials_frame(self) -> Any:
        """Return the float model and all trials as a ``pandas.DataFrame``, one row each.

        Scores and objectives have columns of their own; ``float_latency_ms`` is the float model's
        figure of the same rounds, so that ``latency_ms`` is ``latency_ratio`` times it.

        Raises:
            MissingFramework: If pandas is not installed.
        """
        return trials_frame((self.baseline, *self.trials))

    def summary(self, width: int = 100) -> str:
        """Return the tables of the run as text: what ``octavo tune`` prints at its end.

        Args:
            width: Columns.
        """
        return shown.result_summary(self, width)

    def __repr__(self) -> str:
        return shown.of_result(self)

    def _repr_html_(self) -> str:
        """Return it for a notebook."""
        return shown.html_of_result(self)

    def facts(self) -> dict[str, Any]:
        """Return everything but the model, JSON-ready.

        What the manifest keeps and the report is drawn from.
        """
        return {
            **super().facts(),
            "goal_met": self.goal_met,
            "reason": self.reason,
            "goal": self.goal,
            "best": self.best.to_json(),
            "baseline": self.baseline.to_json(),
            "floats": {name: t.to_json() for name, t in self.floats.items()},
            "holdout": asdict(self.holdout) if self.holdout else None,
            "certificate": asdict(self.certificate) if self.certificate else None,
            "confirmed": dict(self.confirmed) if self.confirmed is not None else None,
            "config": self.config.model_dump(mode="json", exclude_defaults=True),
            "settings": self.config.model_dump(mode="json"),
            "trials": [t.to_json() for t in self.trials],
            "seconds": self.seconds,
            "storage": self.storage,
            "command": redacted(self.command),
            "why_best": self.why_best,
            "layers": {op: layer.to_json() for op, layer in self.layers.items()},
            "machine": dict(self.machine),
            "data": dict(self.data),
            "final": dict(self.final),
            "remarks": list(self.remarks),
            "front": self.front.to_json(),
        }

    def _ops(self) -> dict[str, list[Any]]:
        fixed = self.fixed.get(self.best.recipe.backend, {})
        return {
            name: [kind, parameters, fixed.get(name, "")]
            for name, (kind, parameters, _) in super()._ops().items()
        }

    def report(self, path: str | Path, title: str = "Quantization report") -> Path:
        """Write the HTML report, one file that needs no network (extra ``report``)."""
        from octavo.core.report import report_data, write

        made = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        facts = {**self.facts(), "environment": environment(), "made": made}
        return write(report_data(facts, title), path)


__all__ = [
    "MANIFEST",
    "MODEL",
    "Quantized",
    "Result",
    "check_target",
    "environment",
    "load_candidate",
    "read_manifest",
    "save_candidate",
]
