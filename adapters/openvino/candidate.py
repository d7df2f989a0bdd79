"""A recipe carried out, or the float model, compiled by OpenVINO when it is first needed."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from octavo.plugin import Applied, Batch, CompiledCandidate, Recipe, feed

from . import OpenVinoConfig
from .figures import Owners, bytes_by_op, profile
from .ports import input_info
from .prepare import core, digest
from .running import OPTIONS, PRECISIONS, Executable, compile_model

FILE = "model.xml"


class OpenVinoCandidate(CompiledCandidate):
    """A model on OpenVINO.

    Args:
        model: An ``ov.Model``, which is not changed any more.
        config: The card's settings.
        recipe: What was asked for.
        ledger: What became of each op.
        owners: Whose its nodes are; None where that is not known.
    """

    def __init__(
        self,
        model: Any,
        config: OpenVinoConfig,
        recipe: Recipe,
        ledger: Mapping[str, Applied] | None,
        owners: Owners | None = None,
    ) -> None:
        self.config = config
        self._owners = owners
        super().__init__(model, recipe, ledger, tuple(map(input_info, model.inputs)))

    def compile(self) -> Executable:
        """Compile the model; a blob in the cache is read."""
        return Executable(compile_model(self.model, self.config))

    def run_compiled(
        self, compiled: Executable, fed: Mapping[str, np.ndarray]
    ) -> Sequence[np.ndarray]:
        """Run one batch."""
        return compiled.run(fed)

    def to_bytes(self) -> bytes:
        """Return the IR, weights included."""
        with tempfile.TemporaryDirectory(prefix="octavo-") as folder:
            path = Path(folder) / FILE
            ov.serialize(self.model, path)
            xml, weights = path.read_bytes(), path.with_suffix(".bin").read_bytes()
        return len(xml).to_bytes(8, "little") + xml + weights

    def from_bytes(self, data: bytes) -> Any:
        """Return the model of :meth:`to_bytes`."""
        end = 8 + int.from_bytes(data[:8], "little")
        weights = np.frombuffer(data, np.uint8, offset=end)
        return core().read_model(data[8:end], ov.Tensor(weights))

    def fingerprint(self) -> str:
        """Digest of structure and weights."""
        return digest(self.model)

    def write(self, folder: Path) -> None:
        """Write ``model.xml`` and ``model.bin``, which plain OpenVINO loads.

        How a key-value cache is held stands in them, and is taken up by a plain load.
        """
        model = self.model
        if self.config.kv_cache is not None:
            held = PRECISIONS[self.config.kv_cache].get_type_name()
            model = model.clone()
            model.set_rt_info(held, [OPTIONS, "KV_CACHE_PRECISION"])
        ov.save_model(model, folder / FILE, compress_to_fp16=False)

    def profile(self, batch: Batch, seconds: float) -> Mapping[str, float]:
        """Return the milliseconds of each op in a call, by OpenVINO's counters."""
        if self._owners is None:
            return {}
        fed = feed(batch, self.inputs)
        return profile(self.model, self.config, self._owners, fed, seconds)

    def bytes_by_op(self) -> Mapping[str, int]:
        """Return the bytes of each op's constants in the file of weights."""
        if self._owners is None:
            return {}
        with tempfile.TemporaryDirectory(prefix="octavo-") as folder:
            self.write(Path(folder))
            return bytes_by_op(Path(folder) / FILE, self._owners)
