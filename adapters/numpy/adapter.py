"""The NumPy backend: opens models and loads candidates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from octavo.adapters.numpy.files.archive import load_graph
from octavo.adapters.numpy.files.source import read
from octavo.adapters.numpy.prepare.rewrites import optimised
from octavo.adapters.numpy.run.kernels import Kernels
from octavo.core.authoring.recipes import ledger_from_json
from octavo.core.calibration.reading import choose_reading, takes_of
from octavo.core.contract.adapter import Adapter, Batch
from octavo.core.contract.parts import PartConfig
from octavo.core.errors import NonFiniteWeight
from octavo.core.values.capability import Capability
from octavo.core.values.recipe import Recipe

from . import NumpyConfig
from .candidate import MODEL, NumpyCandidate
from .graph import Graph
from .offers import capability
from .samples import sample
from .session import NumpySession

_NORMS = ("LayerNormalization", "RMSNormalization")


class NumpyAdapter(Adapter):
    """Opens graphs, ONNX models, scikit-learn estimators and .npz files."""

    def __init__(self, config: PartConfig) -> None:
        super().__init__(config)
        self._settings = config if isinstance(config, NumpyConfig) else NumpyConfig()

    def _kernels(self) -> Kernels:
        return Kernels(self._settings.scratch, self._settings.threads)

    def open(self, source: Any, example: Batch | None = None) -> NumpySession:
        """Open a graph, an ONNX file or ModelProto, a fitted estimator, or a .npz file.

        Raises:
            ModelError: If it is none of those, or damaged.
            NonFiniteWeight: If a norm's gain or shift holds NaN or Inf.
        """
        graph = optimised(read(source).check())
        _refuse_non_finite(graph)
        if example is not None:
            # It may still hold labels.
            example = choose_reading(example, takes_of(graph.inputs), None)(example, 0)
        return NumpySession(graph, self._kernels(), example)

    def capability(self) -> Capability:
        """Integer arithmetic on any processor."""
        return capability()

    def sample(self, kind: str) -> tuple[Any, Batch] | None:
        """Return a graph of one op and a batch for it."""
        return sample(kind)

    def load(self, folder: Path, model: Any = None) -> NumpyCandidate:
        """Read ``model.npz``."""
        graph, table = load_graph(Path(folder) / MODEL)
        if "recipe" in table:
            recipe = Recipe.from_json(table["recipe"])
        else:
            recipe = Recipe({}, backend="numpy")
        ledger = ledger_from_json(recipe, table.get("ledger", {}))
        return NumpyCandidate(graph, recipe, ledger, self._kernels())


def _refuse_non_finite(graph: Graph) -> None:
    """Refuse norms whose gain or shift holds NaN or Inf: no op names them, for the core to look."""
    for node in graph.nodes:
        for name in node.inputs[1:] if node.op in _NORMS else ():
            array = graph.initializers.get(name)
            if array is None or array.dtype.kind != "f":
                continue
            if not np.isfinite(array).all():
                raise NonFiniteWeight(
                    f"tensor {name!r} holds NaN or Inf; repair the model"
                )


__all__ = ["NumpyAdapter", "NumpyConfig"]
