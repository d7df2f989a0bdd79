"""What a run hands back: the best model with the evidence."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.core.contract.adapter import Candidate
from octavo.core.errors import ConfigError
from octavo.core.opening.config import TuningConfig
from octavo.core.scoring.certificate import Certificate
from octavo.core.scoring.choice import pareto
from octavo.core.scoring.evaluation import ArrayModel
from octavo.core.scoring.scoring import Holdout
from octavo.core.system.redaction import redacted
from octavo.core.system.textfiles import absolute
from octavo.core.values.coverage import Coverage
from octavo.core.values.graph import ModelView
from octavo.core.values.layers import Layer
from octavo.core.values.ledger import Applied
from octavo.core.values.trial import Trial

from .loading import load_candidate, read_manifest
from .saving import MANIFEST, MODEL, check_target, environment, save_candidate

if TYPE_CHECKING:
    from octavo.core.contract.plugins import PluginHost


@dataclass(frozen=True)
class Quantized:
    """A quantized model with its ledger.

    Attributes:
        candidate: The backend's object.
        native: Whether :attr:`model` is the backend's own (an nn.Module, a callable session) or
            arrays in, arrays out.
        notes: What the user should know.
        coverage: Which weights of the model are quantized and which stay float, and why.
        backend_settings: Of the backend that it was made with: threads, device, providers, ...; it
            is loaded with them again.
    """

    candidate: Candidate
    native: bool = True
    notes: tuple[str, ...] = ()
    coverage: Coverage = field(default_factory=Coverage)
    backend_settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def model(self) -> Any:
        """The runnable model."""
        return self.candidate.native if self.native else ArrayModel(self.candidate)

    @property
    def ledger(self) -> Mapping[str, Applied]:
        """Op -> what was requested and what runs."""
        return self.candidate.ledger

    def save(self, folder: str | Path) -> Path:
        """Write the model and its manifest.

        An existing result is replaced as a whole or not at all.

        Raises:
            ConfigError: If the folder exists and is no octavo result.
        """
        facts = {
            "coverage": self.coverage.to_json(),
            "backend_settings": dict(self.backend_settings),
        }
        return save_candidate(
            self.candidate, absolute(folder, "a result's folder"), facts
        )

    def export(
        self, to: str, folder: str | Path, *, host: PluginHost | None = None
    ) -> Path:
        """Write the model for another runtime.

        ``standalone``, ``compressed-tensors``, ``gptq``, ...; as a whole or not at all.

        Args:
            to: Name of an exporter (``octavo plugins`` lists them).
            folder: It must be new or empty.
            host: Plugins; None loads the default ones.

        Raises:
            ConfigError: If the folder is not empty.
            UnknownPart: If there is no such exporter.
            SchemeError: If the other runtime cannot hold the model; the message says which op, and
                the remedy.
        """
        from octavo.core.contract.plugins import PluginHost

        exporter = (host or PluginHost()).part("exporters", to).load()
        folder = absolute(folder, "the folder of an export")
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(
                f"{folder} exists and is not empty; choose another folder"
            )
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Written beside the target and put in place when it is whole.
        with tempfile.TemporaryDirectory(
            dir=folder.parent, prefix=f".{folder.name}-"
        ) as fresh:
            made = Path(fresh) / "export"
            made.mkdir()
            exporter(self, made)
            if folder.exists():
                folder.rmdir()
            shutil.move(made, folder)
        return folder


@dataclass(frozen=True)
class Result(Quantized):
    """The outcome of a tuning run.

    Attributes:
        goal_met: Whether the model meets the goal: a trial that passed and is a gain, or the float
            model where none is.
        reason: Why the search ended and, where the goal was missed, by how much.
        best: The winner's trial; the baseline where nothing could be quantized, or what was is no
            gain.
        baseline: The float model's trial.
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
    """

    goal_met: bool = False
    reason: str = ""
    best: Trial = field(kw_only=True)
    baseline: Trial = field(kw_only=True)
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

    @property
    def objectives(self) -> tuple[str, ...]:
        """Names of what was minimised, most important first."""
        return tuple(self.baseline.objectives)

    @property
    def pareto(self) -> tuple[Trial, ...]:
        """Trials that no other one beats in accuracy and every objective at once."""
        return pareto(self.trials, self.objectives)

    def facts(self) -> dict[str, Any]:
        """Return everything but the model, JSON-ready.

        What the manifest keeps and the report is drawn from.
        """
        view = self.views.get(self.best.recipe.backend)
        fixed = self.fixed.get(self.best.recipe.backend, {})
        ops = view.ops if view else ()
        return {
            "backend_settings": dict(self.backend_settings),
            "goal_met": self.goal_met,
            "reason": self.reason,
            "goal": self.goal,
            "best": self.best.to_json(),
            "baseline": self.baseline.to_json(),
            "holdout": asdict(self.holdout) if self.holdout else None,
            "certificate": asdict(self.certificate) if self.certificate else None,
            "confirmed": dict(self.confirmed) if self.confirmed is not None else None,
            "config": self.config.model_dump(mode="json", exclude_defaults=True),
            "settings": self.config.model_dump(mode="json"),
            "trials": [t.to_json() for t in self.trials],
            "ops": {
                op.name: [op.type, op.parameters, fixed.get(op.name, "")] for op in ops
            },
            "coverage": self.coverage.to_json(),
            "notes": list(self.notes),
            "seconds": self.seconds,
            "storage": self.storage,
            "command": redacted(self.command),
            "why_best": self.why_best,
            "layers": {op: layer.to_json() for op, layer in self.layers.items()},
            "machine": dict(self.machine),
            "data": dict(self.data),
            "final": dict(self.final),
            "remarks": list(self.remarks),
        }

    def save(self, folder: str | Path) -> Path:
        """Write model, manifest, recipe and all trials.

        An existing result is replaced as a whole or not at all.
        """
        return save_candidate(
            self.candidate, absolute(folder, "a result's folder"), self.facts()
        )

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
