"""What ``octavo quantize`` made, or would make."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from octavo.core.contract.objective import Subject
from octavo.core.contract.plugins import PluginHost
from octavo.core.opening.alternatives import only_one
from octavo.core.opening.config import TuningConfig
from octavo.core.opening.grammar.named import NamedScheme
from octavo.core.opening.opening import open_all
from octavo.core.opening.presets import preset_recipe
from octavo.core.opening.spaces import build_space
from octavo.core.report import text
from octavo.core.report.loading_code import loading_code, near
from octavo.core.report.summary import float_weights
from octavo.core.results.comparing import Comparison
from octavo.core.results.result import Quantized
from octavo.core.results.saved_recipes import Scheme
from octavo.core.values.scheme import in_order
from octavo.core.values.space import breadth

from .dry_run import Plan
from .face.failures import DONE


@dataclass(frozen=True)
class Made:
    """What was quantized.

    Attributes:
        quantized: The model.
        scheme: As it was asked for.
        folder: Where it is saved.
        compared: It beside float; None where there are no data.
    """

    quantized: Quantized
    scheme: str
    folder: Path
    compared: Comparison | None

    @property
    def notes(self) -> list[str]:
        """What the user should know, and no table tells."""
        told_by_table = self.quantized.coverage.summary()
        return [note for note in self.quantized.notes if note != told_by_table]

    @property
    def code(self) -> str:
        """Lines that load the model and run it."""
        facts = self.quantized.facts()
        backend = self.quantized.candidate.recipe.adapter
        return loading_code(backend, self.folder, facts["inputs"])

    def sizes(self) -> tuple[int, int | None]:
        """Return the bytes of the saved model, and of the float model where it is known."""
        files = (self.folder / "model").rglob("*")
        own = sum(file.stat().st_size for file in files if file.is_file())
        if self.quantized.origin is None:
            return own, None
        # Only its files are looked at, so that any batch will do.
        subject = Subject(self.quantized.origin.reference, ())
        try:
            return own, subject.bytes
        finally:
            subject.close()

    def facts(self) -> dict[str, Any]:
        """Return everything as a JSON object."""
        coverage = self.quantized.coverage
        told: dict[str, Any] = {
            "scheme": self.scheme,
            "backend": self.quantized.candidate.recipe.backend,
            "folder": str(self.folder),
            "model": str(self.quantized.file) if self.quantized.file else None,
            "load": self.code,
        }
        if self.compared is not None:
            told |= self.compared.to_json()
        else:
            own, base = self.sizes()
            ratio = own / base if base else None
            told["size"] = {"float_bytes": base, "bytes": own, "ratio": ratio}
            told["latency"] = None
        told["coverage"] = {
            "weights": coverage.total,
            "quantized": coverage.quantized,
            "float": coverage.kept,
        }
        told["notes"] = self.notes
        told["exit_code"] = DONE
        return told

    def parts(self, whole: bool) -> Iterator[RenderableType]:
        """Yield everything for people.

        Args:
            whole: Whether each op has a line.
        """
        lines = self.quantized.ledger
        yield lines.table() if whole else lines.by_type()
        legend = lines.legend()
        if legend is not None:
            yield legend
        if self.quantized.coverage.total:
            yield float_weights(self.quantized.coverage)
        if self.compared is not None:
            yield self.compared.table()
            for warning in self.compared.warnings:
                yield Text("warning: ", style="yellow") + Text(warning, style="")
        else:
            yield Text(self._size_words())
        if self.quantized.file is not None:
            yield _whole(f"model: {near(self.quantized.file)}")
        yield Text("to load it and run it:")
        indented = "\n".join(f"    {line}" for line in self.code.splitlines())
        yield _whole(indented)

    def _size_words(self) -> str:
        own, base = self.sizes()
        beside = ""
        if base:
            beside = f", float {text.size(base)} (ratio {own / base:.3g})"
        return (
            f"size {text.size(own)}{beside}; latency and outputs are compared where --data gives "
            "samples"
        )


def _whole(said: str) -> Text:
    """Return a text that no line break is put into: it is copied as it stands."""
    return Text(said, no_wrap=True, overflow="ignore")


def plan_of_quantize(
    name: str,
    model: Any,
    scheme: tuple[str, Scheme],
    batches: Any,
    backend: str | None,
    target: Path,
) -> Plan:
    """Return what would be quantized; the model is opened on its backend.

    Args:
        name: The model as it was named.
        model: The model.
        scheme: As it was given, and what it stands for.
        batches: Calibration data.
        backend: The backend; None for the model's own.
        target: Where the result would go.

    Raises:
        SchemeError: If no op of the model can take the scheme.
    """
    given, asked = scheme
    settings = asked if isinstance(asked, TuningConfig) else TuningConfig()
    if backend is not None:
        settings = TuningConfig.read(settings, backends=(backend,))
    only_one("transforms", settings.combinations)
    host = PluginHost()
    with ExitStack() as stack:
        found = open_all(model, batches, settings, host, stack, need_data=False)
        space = build_space(
            found.backends[-1],
            settings.rules,
            transforms=settings.combinations,
            require=settings.require,
            simulated=settings.simulated,
            scales=isinstance(asked, NamedScheme) and asked.format.names_scales,
            host=host,
        )
    label = "the rules of a configuration" if isinstance(asked, TuningConfig) else given
    ops = sum(len(unit.ops) for unit in space.tunable)
    notes = space.notes
    applied = space.transforms[-1]
    if isinstance(asked, NamedScheme):
        taking = preset_recipe(asked, space, found.backends[-1], host)
        applied = taking.transforms
        notes = (*notes, *asked.remarks, f"{len(taking)} of {ops} ops take {given}")
    facts = {
        "dry_run": True,
        "model": name,
        "backend": space.backend,
        "scheme": label,
        "ops": ops,
        "transforms": list(map(str, applied)),
        "folder": str(target),
        "notes": list(notes),
        "exit_code": DONE,
    }
    calibrates = batches is not None
    lines = [
        ("model", name),
        ("backend", space.backend),
        ("scheme", label),
        ("space", breadth([space])),
        ("transforms", in_order(applied) or "none"),
        (
            "phases",
            "opening, calibration, quantizing" if calibrates else "opening, quantizing",
        ),
        (
            "result",
            f"{target} (it would be replaced)" if target.exists() else str(target),
        ),
    ]
    return Plan(facts, lines, notes)
