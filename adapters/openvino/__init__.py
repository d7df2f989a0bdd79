"""OpenVINO models, and ONNX ones on OpenVINO. The card: it imports no framework."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field

from octavo.plugin import AdapterPart, PartConfig, hookimpl


class OpenVinoConfig(PartConfig):
    """How models are compiled and run.

    Attributes:
        threads: Threads of one inference; None leaves the choice to OpenVINO.
        streams: Inferences that may run beside each other; more of them serve many callers at once
            and make each one slower.
        hint: What OpenVINO tunes itself for.
        precision: Of what stays float. ``bfloat16`` and ``float16`` are hints: a CPU without them
            computes in float32, and the ledger's lines stay what the runtime shows.
        kv_cache: How the key-value cache of a stateful decoder is held; None leaves the choice to
            OpenVINO.
        cache: A folder that keeps what was compiled from one process to the next (OpenVINO's
            ``CACHE_DIR``); each model takes about its own size there. None compiles anew.
    """

    kind: Literal["openvino"] = "openvino"
    threads: int | None = Field(default=None, ge=1, le=1024)
    streams: int = Field(default=1, ge=1, le=1024)
    hint: Literal["latency", "throughput"] = "latency"
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    kv_cache: Literal["float32", "float16", "bfloat16", "uint8"] | None = None
    cache: str | None = None


@hookimpl
def octavo_adapters() -> Iterable[AdapterPart[Any]]:
    """Offer the OpenVINO backend."""
    return (
        AdapterPart(
            "openvino",
            "octavo.adapters.openvino.adapter:OpenVinoAdapter",
            OpenVinoConfig,
            "OpenVINO models on its CPU plugin's integer kernels",
            hint="pip install 'octavo[openvino]'",
            # A card names the module that defines the class, whatever others export it.
            models=("openvino._ov_api.Model",),
            suffixes=(".xml",),
            accepts=("onnx",),
            files=("{stem}.bin",),
        ),
    )
