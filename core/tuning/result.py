"""What a run hands back: the best model with the evidence."""

from __future__ import annotations

import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, Field

from octavo.core.contract.adapter import Candidate
from octavo.core.errors import (
    ConfigError,
    DeviceError,
    ModelError,
    OctavoError,
    StoreError,
    raised_as,
)
from octavo.core.scoring.certificate import Certificate
from octavo.core.scoring.choice import pareto
from octavo.core.scoring.evaluation import ArrayModel
from octavo.core.scoring.scoring import Holdout
from octavo.core.system.redaction import redacted
from octavo.core.system.textfiles import absolute, read_table
from octavo.core.values.coverage import Coverage
from octavo.core.values.graph import ModelView
from octavo.core.values.json_form import without_infinities
from octavo.core.values.ledger import Applied
from octavo.core.values.scheme import Frozen
from octavo.core.values.settings import checked
from octavo.core.values.trial import Trial

from .config import TuningConfig

if TYPE_CHECKING:
    from octavo.core.contract.plugins import PluginHost

MANIFEST = "octavo.json"
MODEL = "model"
FORMAT = 1


@dataclass(frozen=True)
class Quantized:
    """A quantized model with its ledger.

    Attributes:
        candidate: The backend's object.
        native: Whether :attr:`model` is the backend's own (an nn.Module, a callable session) or arrays in, arrays out.
        notes: What the user should know.
        coverage: Which weights of the model are quantized and which stay float, and why.
        backend_settings: Of the backend that it was made with: threads, device, providers, ...; it is loaded with them again.
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
        """Write the model and its manifest; an existing result is replaced as a whole or not at all.

        Raises:
            ConfigError: If the folder exists and is no octavo result.
        """
        facts = {
            "coverage": self.coverage.to_json(),
            "backend_settings": dict(self.backend_settings),
        }
        return save_candidate(self.candidate, absolute(folder, "a result's folder"), facts)

    def export(self, to: str, folder: str | Path, *, host: PluginHost | None = None) -> Path:
        """Write the model for another runtime: ``standalone``, ``compressed-tensors``, ``gptq``, ...; as a whole or not at all.

        Args:
            to: Name of an exporter (``octavo plugins`` lists them).
            folder: It must be new or empty.
            host: Plugins; None loads the default ones.

        Raises:
            ConfigError: If the folder is not empty.
            UnknownPart: If there is no such exporter.
            SchemeError: If the other runtime cannot hold the model; the message says which op, and the remedy.
        """
        from octavo.core.contract.plugins import PluginHost

        exporter = (host or PluginHost()).part("exporters", to).load()
        folder = absolute(folder, "the folder of an export")
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"{folder} exists and is not empty; choose another folder")
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Written beside the target and put in place when it is whole.
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as fresh:
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
        goal_met: Whether the model meets the goal: a trial that passed and is a gain, or the float model where none is.
        reason: Why the search ended and, where the goal was missed, by how much.
        best: The winner's trial; the baseline where nothing could be quantized, or what was is no gain.
        baseline: The float model's trial.
        trials: All trials, without the baseline.
        config: The settings.
        goal: The goal in one line.
        confirmed: The winner's metrics after it was saved, loaded and scored again; None if that was turned off.
        holdout: The winner's and the float model's scores on data that the search never saw, where some was held out.
        certificate: How sure it is that the winner keeps the goal on new data, where ``accuracy.confidence`` asked for that.
        views: Backend -> the model's ops.
        fixed: Backend -> op -> why no scheme could be chosen for it.
        storage: Where the history is kept.
        interrupted: Whether a signal ended the search.
        seconds: Wall time of the whole run.
        command: How to run it again, where the command line started it.
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

    @property
    def objectives(self) -> tuple[str, ...]:
        """Names of what was minimised, most important first."""
        return tuple(self.baseline.objectives)

    @property
    def pareto(self) -> tuple[Trial, ...]:
        """Trials that no other one beats in accuracy and every objective at once."""
        return pareto(self.trials, self.objectives)

    def facts(self) -> dict[str, Any]:
        """Return everything but the model, JSON-ready: what the manifest keeps and the report is drawn from."""
        view, fixed = (
            self.views.get(self.best.recipe.backend),
            self.fixed.get(self.best.recipe.backend, {}),
        )
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
            "trials": [t.to_json() for t in self.trials],
            "ops": {op.name: [op.type, op.parameters, fixed.get(op.name, "")] for op in view.ops}
            if view
            else {},
            "coverage": self.coverage.to_json(),
            "notes": list(self.notes),
            "seconds": self.seconds,
            "storage": self.storage,
            "command": redacted(self.command),
        }

    def save(self, folder: str | Path) -> Path:
        """Write model, manifest, recipe and all trials; an existing result is replaced as a whole or not at all."""
        return save_candidate(self.candidate, absolute(folder, "a result's folder"), self.facts())

    def report(self, path: str | Path, title: str = "Quantization report") -> Path:
        """Write the HTML report, one file that needs no network (extra ``report``)."""
        from octavo.core.report import report_data, write

        made = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        return write(
            report_data({**self.facts(), "environment": environment(), "made": made}, title), path
        )


def check_target(folder: Path) -> Path:
    """Return the absolute path of a folder that a result may be saved to.

    Raises:
        ConfigError: If it exists and is no octavo result, or could not be made.
    """
    folder = absolute(folder, "a result's folder")
    if (
        folder.exists()
        and not (folder / MANIFEST).is_file()
        and (not folder.is_dir() or any(folder.iterdir()))
    ):
        raise ConfigError(
            f"{folder} exists and is no octavo result; choose another folder or empty it"
        )
    there = next(p for p in folder.parents if p.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ConfigError(
            f"{folder} cannot be written: {there} is no writable folder; choose another"
        )
    return folder


def save_candidate(candidate: Candidate, folder: Path, facts: Mapping[str, Any]) -> Path:
    """Write a candidate with its manifest beside the target, then put it in place.

    Raises:
        ConfigError: If the folder is no place for it.
        StoreError: If it cannot be written: a full disk, a folder that is gone.
    """
    folder = check_target(folder)
    with raised_as(StoreError, f"the result cannot be written to {folder}"):
        return _written(candidate, folder, facts)


def _written(candidate: Candidate, folder: Path, facts: Mapping[str, Any]) -> Path:
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        (fresh / MODEL).mkdir()
        candidate.save(fresh / MODEL)
        manifest = {
            "format": FORMAT,
            "octavo": version("octavo"),
            "backend": candidate.recipe.backend,
            "recipe": candidate.recipe.to_json(),
            "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "environment": environment(),
            **facts,
        }
        (fresh / MANIFEST).write_text(
            json.dumps(without_infinities(manifest), indent=1), encoding="utf-8"
        )
        fresh.chmod(0o755)
        if folder.exists():
            old = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-old-"))
            folder.rename(old / "was")
            fresh.rename(folder)
            shutil.rmtree(old, ignore_errors=True)
        else:
            fresh.rename(folder)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    return folder


def environment() -> dict[str, str]:
    """Return versions and processor, as a result records them."""
    found = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.system(),
    }
    for name in ("octavo", "numpy", "torch", "onnx", "onnxruntime", "optuna"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read a saved result's manifest.

    Raises:
        ConfigError: If the folder holds none, or a newer octavo wrote it.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise ConfigError(f"{folder} holds no {MANIFEST}; give a folder that result.save() wrote")
    manifest = read_table(path, remedy="save the result again")
    head = checked(_Head, manifest, f"{path} is damaged, save the result again")
    if head.format > FORMAT:
        raise ConfigError(
            f"{path} was written by a newer octavo (format {head.format}, this one reads {FORMAT}); upgrade octavo"
        )
    return manifest


class _Head(Frozen):
    """What every manifest holds; that of a run holds more."""

    model_config = ConfigDict(extra="ignore")

    format: int
    octavo: str
    backend: str
    recipe: dict[str, Any]
    made: str
    environment: dict[str, str]
    backend_settings: dict[str, Any] = Field(default_factory=dict)


def load_candidate(
    folder: str | Path,
    model: Any = None,
    *,
    backend: Mapping[str, Any] | None = None,
    host: PluginHost | None = None,
) -> Candidate:
    """Load a saved result as its backend's candidate.

    Args:
        folder: What ``save`` wrote; or the model's own file where it is one (``.onnx``).
        model: The float model (or a factory of one) for backends whose files do not hold the architecture (torch).
        backend: Settings of its backend (``threads``, ``device``, ``providers``, ...) in place of those that it was saved with.
        host: Plugins; None loads the default ones.

    Raises:
        ConfigError: If the folder is no result, or its backend has no such setting.
        DeviceError: If it was made on a device that is not here; ``backend={"device": ...}`` names another.
        UnknownPart: If its backend is not loaded; MissingFramework if it is not installed.
    """
    from octavo.core.contract.plugins import PluginHost

    folder = absolute(folder, "a saved result")
    host = host or PluginHost()
    recorded: Mapping[str, Any] = {}
    if folder.is_file():
        claims = [c for c in host.adapters().values() if c.claims(folder)]
        if not claims:
            raise ConfigError(
                f"no backend loads a file called {folder.name}; give the folder that result.save() wrote"
            )
        name, place = claims[0].name, folder
    else:
        manifest = read_manifest(folder)
        name, place = manifest["backend"], folder / MODEL
        with raised_as(ConfigError, f"{folder / MANIFEST} is damaged", "save the result again"):
            recorded = _recorded(manifest)
    card = host.part("adapters", name)
    kept = {
        k: v
        for k, v in recorded.items()
        if k in card.config.model_fields and k not in card.config.unsaved
    }
    adapter = card.build(host.read("adapters", {**kept, **(backend or {}), "kind": name}))
    elsewhere = f"or load it elsewhere: octavo.load({str(folder)!r}, backend={{'device': 'cpu'}})"
    with (
        with_remedy(DeviceError, elsewhere),
        raised_as(
            ModelError,
            f"{folder} is damaged, or does not belong to the given model",
            "save the result again",
        ),
    ):
        candidate: Candidate = adapter.load(place, model)
    return candidate


@contextmanager
def with_remedy(family: type[OctavoError], remedy: str) -> Iterator[None]:
    """Add a way out to errors of a family."""
    try:
        yield
    except family as error:
        raise type(error)(f"{error}; {remedy}") from error


def _recorded(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the backend's settings that a result was made with; older ones keep them in the run's configuration only."""
    if "backend_settings" in manifest:
        return dict(manifest["backend_settings"])
    asked = manifest.get("config", {}).get("backends") or ()
    return next(
        (b for b in asked if isinstance(b, Mapping) and b.get("kind") == manifest["backend"]), {}
    )
