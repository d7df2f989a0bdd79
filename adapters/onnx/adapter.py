"""The ONNX backend: opens models of any origin and loads what was saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from octavo.adapters.onnx.prepare.half import holds_halves
from octavo.adapters.onnx.prepare.source import read
from octavo.adapters.onnx.run.compiling import judge
from octavo.core.contract.adapter import Adapter, Batch
from octavo.core.errors import ModelError
from octavo.core.values.capability import Capability

from . import OnnxConfig
from .candidate import OnnxCandidate, load_candidate
from .offers import capability
from .samples import sample
from .session import OnnxSession


class OnnxAdapter(Adapter):
    """Models as ONNX graphs, on ONNX Runtime."""

    config: OnnxConfig

    def open(self, source: Any, example: Batch | None = None) -> OnnxSession:
        """Open a path, a ModelProto or an ``onnx_ir.Model``.

        Raises:
            ModelError: If it is no valid model or the runtime cannot run its opset; UnsafeFile and
                NonFiniteWeight among them.
        """
        model = read(source)
        try:
            judge(model, self.config)
        except ModelError:
            # What the runtime has no bfloat16 kernel for is computed in float32 here.
            if not holds_halves(model):
                raise
        session = OnnxSession(model, self.config)
        session.check()
        return session

    def capability(self) -> Capability:
        """Return what ONNX Runtime's integer kernels carry out."""
        return capability(self.config)

    def sample(self, kind: str) -> tuple[Any, Batch] | None:
        """Return a model of one op and a batch for it."""
        return sample(kind)

    def load(self, folder: Path, model: Any = None) -> OnnxCandidate:
        """Read a saved candidate; its files hold the whole model."""
        return load_candidate(folder, self.config, read)
