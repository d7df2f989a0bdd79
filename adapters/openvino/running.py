"""Models compiled under the backend's settings, and run."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from octavo.plugin import DeviceError, raised_as

from . import OpenVinoConfig
from .prepare import core

PRECISIONS = {
    "float32": ov.Type.f32, "float16": ov.Type.f16, "bfloat16": ov.Type.bf16,
    "uint8": ov.Type.u8,
}  # fmt: skip
"""Names in the settings -> OpenVINO's element types."""
OPTIONS = "runtime_options"
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

    @property
    def request(self) -> Any:
        """The request of the thread that asks."""
        if not hasattr(self._local, "request"):
            self._local.request = self.compiled.create_infer_request()
        return self._local.request

    def run(self, fed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Run one batch; the outputs are copies."""
        request = self.request
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
        "INFERENCE_PRECISION_HINT": PRECISIONS[config.precision],
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
        settings["KV_CACHE_PRECISION"] = PRECISIONS[config.kv_cache]
    with raised_as(
        DeviceError, "OpenVINO cannot compile the model", "keep more in float"
    ):
        return core().compile_model(model, "CPU", {**settings, **options})


def dynamic_group(model: Any) -> int:
    """Return in what blocks activations are quantized at run time; 0 where they are not.

    The default is 32, which rounds the inputs of every op with a packed weight.
    """
    path = [OPTIONS, _GROUP]
    return int(model.get_rt_info(path).astype(str)) if model.has_rt_info(path) else 0


def set_dynamic_group(model: Any, size: int) -> None:
    """Write into a model in what blocks it quantizes activations, so that a plain load does too."""
    model.set_rt_info(str(size), [OPTIONS, _GROUP])
