"""The OpenVINO backend: opens models and loads what was saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from octavo.plugin import Adapter, Batch, Capability, read_recipe

from . import OpenVinoConfig
from .candidate import FILE, OpenVinoCandidate
from .offers import capability
from .prepare import read
from .samples import sample
from .session import OpenVinoSession, probe


class OpenVinoAdapter(Adapter):
    """Models on OpenVINO's CPU plugin."""

    config: OpenVinoConfig

    def open(self, source: Any, example: Batch | None = None) -> OpenVinoSession:
        """Open a path (.onnx, .xml) or an ``ov.Model``.

        Raises:
            ModelError: If OpenVINO cannot read it.
        """
        return OpenVinoSession(read(source), self.config)

    def load(self, folder: Path, model: Any = None) -> OpenVinoCandidate:
        """Read a saved candidate: its folder, or the .xml in it.

        Raises:
            ModelError: If octavo did not save it, or it is damaged.
        """
        folder = Path(folder)
        recipe, lines = read_recipe(folder)
        path = folder if folder.is_file() else folder / FILE
        return OpenVinoCandidate(read(path), self.config, recipe, lines)

    def capability(self) -> Capability:
        """Return what this CPU executes."""
        return capability(self.config, probe)

    def sample(self, kind: str) -> tuple[Any, Batch] | None:
        """Return a model of one op, of the size that models have, and a batch for it."""
        return sample(kind, times=4)
