"""ONNX models on ONNX Runtime. This module is the card: it imports no framework."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field

from octavo.core.contract.hookspecs import hookimpl
from octavo.core.contract.parts import AdapterPart, PartConfig


class OnnxConfig(PartConfig):
    """How ONNX models are opened and run.

    Attributes:
        providers: Execution providers of ONNX Runtime, the preferred one first.
        threads: Intra-op threads; None leaves the choice to ONNX Runtime.
        spinning: Let idle threads spin. Off by default: two sessions that spin on the same cores
            disturb each other's timing.
        form: How static ops are written: ``qdq`` (QuantizeLinear and DequantizeLinear around float
            operators, which the runtime fuses) or ``qoperator`` (QLinearConv, QLinearMatMul,
            QLinearAdd, ...).
        observe_megabytes: Bound on the intermediate arrays held at once during calibration, in MiB.
    """

    kind: Literal["onnx"] = "onnx"
    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    threads: int | None = Field(default=None, ge=1, le=1024)
    spinning: bool = False
    form: Literal["qdq", "qoperator"] = "qdq"
    observe_megabytes: int = Field(default=256, ge=1, le=2**40)


@hookimpl
def octavo_adapters() -> Iterable[AdapterPart[Any]]:
    """Offer the ONNX backend."""
    return (
        AdapterPart(
            "onnx",
            "octavo.adapters.onnx.adapter:OnnxAdapter",
            OnnxConfig,
            "ONNX models on ONNX Runtime's integer kernels",
            hint="pip install 'octavo[onnx]'",
            models=(
                "onnx.onnx_ml_pb2.ModelProto",
                "onnx.ModelProto",
                "onnx_ir._core.Model",
                "onnx_ir.Model",
            ),
            suffixes=(".onnx",),
            accepts=("onnx",),
            # External data, under names that begin as the model's does.
            files=("{name}*",),
        ),
    )
