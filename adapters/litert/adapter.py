"""The LiteRT backend: opens .tflite models and loads candidates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from octavo.plugin import (
    Adapter,
    Batch,
    Capability,
    ModelError,
    PartConfig,
    raised_as,
    read_recipe,
)

from . import LitertConfig
from .candidate import MODEL, LitertCandidate
from .conversion import is_converted, to_flatbuffer
from .describe import input_infos
from .graph import Graph
from .offers import capability
from .samples import sample
from .session import LitertSession, probing


class LitertAdapter(Adapter):
    """Opens float .tflite models."""

    def __init__(self, config: PartConfig) -> None:
        super().__init__(config)
        self._settings = config if isinstance(config, LitertConfig) else LitertConfig()

    def open(self, source: Any, example: Batch | None = None) -> LitertSession:
        """Open a path, or a model as LiteRT's schema classes hold it.

        What is no model of LiteRT yet becomes one here: Keras' and TensorFlow's models by
        TensorFlow's converter, ONNX files by this backend's own.

        Raises:
            MissingFramework: If it is a model of TensorFlow, which is not installed.
            ModelError: If it is no .tflite model and cannot become one, is quantized already, or
                cannot be run.
        """
        if is_converted(source):
            graph = Graph.from_source(source)
        else:
            graph = Graph.from_bytes(to_flatbuffer(source, example))
        graph = graph.widened()
        refuse_quantized(graph)
        session = LitertSession(graph, self._settings)
        # LiteRT says here, and not in the first trial, if it lacks an operator.
        session.check()
        return session

    def capability(self) -> Capability:
        """Return what LiteRT's kernels carry out, established on models of one op."""
        return capability(self._settings, probing)

    def sample(self, kind: str) -> tuple[Any, Batch] | None:
        """Return a model of one op, of the size that models have, and a batch for it."""
        return sample(kind, large=True)

    def load(self, folder: Path, model: Any = None) -> LitertCandidate:
        """Read what a candidate saved: its folder, or the model file in it.

        Raises:
            ModelError: If there is no such file, or it is damaged.
        """
        folder = Path(folder)
        path = folder if folder.is_file() else folder / MODEL
        recipe, ledger = read_recipe(folder)
        with raised_as(ModelError, f"{path} cannot be read"):
            data = path.read_bytes()
        inputs = input_infos(Graph.from_bytes(data))
        return LitertCandidate(data, recipe, ledger, inputs, self._settings)


def refuse_quantized(graph: Graph) -> None:
    """Refuse a model that holds codes: what it was before they were rounded is not in it.

    Raises:
        ModelError: Naming the first tensor.
    """
    for index in range(len(graph.tensors)):
        if graph.holds_codes(index):
            raise ModelError(
                f"the model is quantized already: tensor {graph.name(index)!r} holds "
                f"{graph.dtype(index)} codes; give the float model that it was made from"
            )
