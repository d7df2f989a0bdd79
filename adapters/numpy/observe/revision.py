"""A float graph whose weights are replaced one by one, observed in between."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from octavo.adapters.numpy.graph import Graph
from octavo.adapters.numpy.run.kernels import Kernels
from octavo.adapters.numpy.run.program import Program
from octavo.core.contract.adapter import Batch, Sink
from octavo.core.contract.revision import Revision
from octavo.core.errors import ModelError, nearest
from octavo.core.numerics.affine import Array

from .passes import observe


class NumpyRevision(Revision):
    """A graph with initializers of its own in the places of replaced weights.

    Each observation runs from the inputs.

    Args:
        graph: The float graph; never changed.
        kernels: Shared with every candidate.
        batches: Can be read again.
    """

    def __init__(
        self, graph: Graph, kernels: Kernels, batches: Iterable[Batch]
    ) -> None:
        self._graph = graph
        self._kernels = kernels
        self._batches = batches

    def replace(self, name: str, weight: Array) -> None:
        """Set an initializer."""
        known = self._graph.initializers
        if name not in known:
            raise ModelError(f"the graph has no tensor {name!r}{nearest(name, known)}")
        new = np.asarray(weight).astype(known[name].dtype)
        initializers = {**known, name: new.reshape(known[name].shape)}
        self._graph = self._graph.with_(initializers=initializers)

    def observe(self, values: Iterable[str], sink: Sink) -> int:
        """Run the graph as it is now."""
        program = Program(self._graph, self._kernels)
        return observe(program, self._batches, values, sink)
