"""A quantized model with its ledger: what ``quantize_model`` hands back, and what every result
is."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.core.contract.adapter import Candidate
from octavo.core.errors import ConfigError
from octavo.core.report.loading_code import model_file
from octavo.core.scoring.evaluation import ArrayModel
from octavo.core.system.textfiles import absolute
from octavo.core.values.coverage import Coverage
from octavo.core.values.graph import ModelView

from . import shown
from .comparing import Comparison, Origin, compare
from .ledger import Ledger
from .saving import MODEL, save_candidate
from .weight_bits import bits_per_weight

if TYPE_CHECKING:
    from octavo.core.contract.plugins import PluginHost


@dataclass(frozen=True)
class Quantized:
    """A quantized model with its ledger.

    Attributes:
        candidate: The backend's object.
        native: Whether :attr:`model` is the backend's own (an nn.Module, a callable session) or
            arrays in, arrays out; :func:`octavo.load` returns the same kind.
        notes: What the user should know.
        coverage: Which weights of the model are quantized and which stay float, and why.
        backend_settings: Of the backend that it was made with: threads, device, providers, ...; it
            is loaded with them again.
        origin: What it was made from, for :meth:`compare`; None where that is not known.
    """

    candidate: Candidate
    native: bool = True
    notes: tuple[str, ...] = ()
    coverage: Coverage = field(default_factory=Coverage)
    backend_settings: Mapping[str, Any] = field(default_factory=dict)
    origin: Origin | None = field(default=None, kw_only=True, repr=False, compare=False)

    @property
    def model(self) -> Any:
        """The runnable model."""
        return self.candidate.native if self.native else ArrayModel(self.candidate)

    @property
    def ledger(self) -> Ledger:
        """Op -> what was requested and what runs; it prints as a table, and ``by_type()`` is a
        shorter one."""
        return Ledger(self.candidate.ledger, types=self.types)

    @property
    def view(self) -> ModelView | None:
        """The model's ops on its backend; None where they are not known."""
        return self.origin.opened.view if self.origin else None

    @property
    def types(self) -> Mapping[str, str]:
        """Op -> its type, in the order of the model."""
        return {op.name: op.type for op in self.view.ops} if self.view else {}

    @property
    def bits_per_weight(self) -> Mapping[str, float]:
        """Bits that the saved model takes for an average weight, scales, zero points and repairs
        among them: ``quantized`` over the weights that are quantized, ``all`` over all weights.

        Empty where the model's ops are not known, as after :func:`octavo.load`.
        """
        return bits_per_weight(self.view, self.candidate.ledger, self.coverage)

    @property
    def saved(self) -> Path | None:
        """The folder that it was last saved to by this object; None before that."""
        found: Path | None = self.__dict__.get("_folder")
        return found

    @property
    def file(self) -> Path | None:
        """The model's own file in that folder: what is deployed."""
        return model_file(self.saved / MODEL) if self.saved else None

    def facts(self) -> dict[str, Any]:
        """Return everything but the model, JSON-ready."""
        return {
            "bits_per_weight": dict(self.bits_per_weight),
            "coverage": self.coverage.to_json(),
            "backend_settings": dict(self.backend_settings),
            "arrays": not self.native,
            "ops": self._ops(),
            "inputs": self._inputs(),
            "notes": list(self.notes),
        }

    def _ops(self) -> dict[str, list[Any]]:
        """Return op -> type, weight elements, and why no scheme could be chosen for it."""
        ops = self.view.ops if self.view else ()
        return {op.name: [op.type, op.parameters, ""] for op in ops}

    def _inputs(self) -> list[list[Any]]:
        """Return name, type and shape of each input of the model."""
        inputs = self.view.inputs if self.view else ()
        return [[i.name, i.dtype, i.shape and list(i.shape)] for i in inputs]

    def compare(
        self,
        data: Any = None,
        score: Callable[[Any], Any] | None = None,
        *,
        measure: bool = True,
        metric: str = "score",
    ) -> Comparison:
        """Compare it with the float model that it was made from: bytes of the saved files,
        milliseconds a call (both take turns), difference of the outputs, and a score.

        This runs both models on some batches. ``octavo quantize`` ends with it; in Python it is
        done when it is asked for.

        Args:
            data: Batches, as for calibration; None takes those that calibrated.
            score: A score function, as for :func:`autotune`; it is called with either model.
            measure: Whether calls are timed.
            metric: Name of a score that is a lone number.

        Raises:
            ConfigError: If the float model is not known: it is the result of a run, or was made in
                another process.
            DataError: If there are no data.
        """
        if self.origin is None:
            raise ConfigError(
                "the float model is not known here: compare() is for what quantize_model returns "
                "in this process; a run has measured already what its summary() tells"
            )
        return compare(
            self.candidate,
            self.origin,
            data,
            score,
            native=self.native,
            measure=measure,
            metric=metric,
        )

    def save(self, folder: str | Path) -> Path:
        """Write the model and its manifest.

        An existing result is replaced as a whole or not at all.

        Raises:
            ConfigError: If the folder exists and is no octavo result.
        """
        target = absolute(folder, "a result's folder")
        saved = save_candidate(self.candidate, target, self.facts())
        # Known to this object only: it is no part of what the result is.
        self.__dict__["_folder"] = saved
        return saved

    def summary(self, width: int = 100) -> str:
        """Return the tables as text: what runs by op type, which weights stay float, what next.

        Args:
            width: Columns.
        """
        return shown.quantized_summary(self, width)

    def __repr__(self) -> str:
        return shown.of_quantized(self)

    def _repr_html_(self) -> str:
        """Return it for a notebook."""
        return shown.html_of_quantized(self)

    def __getstate__(self) -> dict[str, Any]:
        # The float model's session stays in its process.
        return {**self.__dict__, "origin": None}

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
