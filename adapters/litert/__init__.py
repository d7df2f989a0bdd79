"""LiteRT models (.tflite). This module is the card: it imports no framework."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field

from octavo.plugin import AdapterPart, PartConfig, hookimpl

_EAGER = "tensorflow.python.eager.polymorphic_function"
"""Where TensorFlow defines what ``tf.function`` makes."""


class LitertConfig(PartConfig):
    """How .tflite models are run and written.

    Attributes:
        threads: Threads of one call; None leaves the choice to LiteRT, which takes one.
        delegate: Let XNNPACK compute what it can, as plain LiteRT does; without it the built-in
            kernels compute all.
        ports: What the saved model takes and returns at its edge: ``float``, or ``codes`` where the
            ops there compute in them; octavo itself goes on feeding floats.
    """

    kind: Literal["litert"] = "litert"
    threads: int | None = Field(default=None, ge=1, le=1024)
    delegate: bool = True
    ports: Literal["float", "codes"] = "float"


@hookimpl
def octavo_adapters() -> Iterable[AdapterPart[Any]]:
    """Offer the LiteRT backend."""
    return (
        AdapterPart(
            "litert",
            "octavo.adapters.litert.adapter:LitertAdapter",
            LitertConfig,
            "LiteRT (TensorFlow Lite) models on XNNPACK's and the built-in integer kernels",
            hint="pip install 'octavo[litert]'",
            models=(
                "ai_edge_litert.schema_py_generated.ModelT",
                "keras.src.models.model.Model",
                "tf_keras.src.engine.training.Model",
                f"{_EAGER}.polymorphic_function.Function",
                f"{_EAGER}.concrete_function.ConcreteFunction",
                "tensorflow.python.trackable.autotrackable.AutoTrackable",
            ),
            suffixes=(".tflite", ".keras", ".h5", ".hdf5"),
            holds=("saved_model.pb",),
            accepts=("onnx",),
        ),
    )
