"""A recipe carried out, or the float model, compiled by OpenVINO when it is first needed."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from octavo.plugin import Applied, CompiledCandidate, DeviceError, Recipe, raised_as

from . import OpenVinoConfig
from .describe import input_info
from .prepare import core, digest

FILE = "model.xml"
_PRECISIONS = {
    "float32": ov.Type.f32, "float16": ov.Type.f16, "bfloat16": ov.Type.bf16,
    "uint8": ov.Type.u8,
}  # fmt: skip
_OPTIONS = "runtime_options"
"""What OpenVINO reads of a saved model as settings of its own (``rt_info`` of the IR)."""
_GROUP = "DYNAMIC_QUANTIZATION_GROUP_SIZE"


class Executable:
    """A compiled model with a request for each thread that runs it.

    Attributes:
        compiled: OpenVINO's.
    """

    def __init__(self, compiled: Any) -> None:
        self.compiled = compiled
        self._local = threading.local()

    def run(self, fed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Run one batch; the outputs are copies."""
        request = getattr(self._local, "request", None)
        if request is None:
            request = self.compiled.create_infer_request()
            self._local.request = request
        # A decoder's state belongs to one batch.
        request.reset_state()
        request.infer(dict(fed))
        count = len(self.compiled.outputs)
        return [np.array(request.get_output_tensor(i).data) for i in range(count)]


def compile_model(model: Any, config: OpenVinoConfig, **options: Any) -> Any:
    """Compile a model under the backend's settings.

    Args:
        model: An ``ov.Model``.
        config: The settings.
        **options: OpenVINO's own, which go before.

    Raises:
        DeviceError: If the CPU plugin refuses the model or a setting.
    """
    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": _PRECISIONS[config.precision],
        "NUM_STREAMS": config.streams,
        "PERFORMANCE_HINT": config.hint.upper(),
        _GROUP: dynamic_group(model),
    }
    if config.cache is not None:
        # Models may be secrets: nobody else reads what was compiled of them.
        Path(config.cache).mkdir(mode=0o700, parents=True, exist_ok=True)
        settings["CACHE_DIR"] = config.cache
    if config.threads is not None:
        settings["INFERENCE_NUM_THREADS"] = config.threads
    if config.kv_cache is not None:
        settings["KV_CACHE_PRECISION"] = _PRECISIONS[config.kv_cache]
    with raised_as(
        DeviceError, "OpenVINO cannot compile the model", "keep more in float"
    ):
        return core().compile_model(model, "CPU", {**settings, **options})


def dynamic_group(model: Any) -> int:
    """Return in what blocks activations are quantized at run time; 0 where they are not.

    The default is 32, which rounds the inputs of every op with a packed weight.
    """
    path = [_OPTIONS, _GROUP]
    return int(model.get_rt_info(path).astype(str)) if model.has_rt_info(path) else 0


def set_dynamic_group(model: Any, size: int) -> None:
    """Write into a model in what blocks it quantizes activations, so that a plain load does too."""
    model.set_rt_info(str(size), [_OPTIONS, _GROUP])


class OpenVinoCandidate(CompiledCandidate):
    """A model on OpenVINO.

    Args:
        model: An ``ov.Model``, which is not changed any more.
        config: The card's settings.
        recipe: What was asked for.
        ledger: What became of each op.
    """

    def __init__(
        self,
        model: Any,
        config: OpenVinoConfig,
        recipe: Recipe,
        ledger: Mapping[str, Applied] | None,
    ) -> None:
        self.config = config
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
            held = _PRECISIONS[self.config.kv_cache].get_type_name()
            model = model.clone()
            model.set_rt_info(held, [_OPTIONS, "KV_CACHE_PRECISION"])
        ov.save_model(model, folder / FILE, compress_to_fp16=False)
