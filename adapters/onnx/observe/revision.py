"""A float model whose weights are replaced one by one, observed in between."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from octavo.adapters.onnx import OnnxConfig
from octavo.core.contract.adapter import Batch, Sink
from octavo.core.contract.revision import Revision
from octavo.core.errors import ModelError, nearest
from octavo.core.numerics.affine import Array

from .passes import observe


class OnnxRevision(Revision):
    """A clone of the prepared model; each observation runs from the inputs.

    Args:
        prepared: The prepared model; never changed.
        config: The card's settings.
        batches: Can be read again.
    """

    def __init__(
        self, prepared: ir.Model, config: OnnxConfig, batches: Iterable[Batch]
    ) -> None:
        self._model = prepared.clone()
        self._config = config
        self._batches = batches

    def replace(self, name: str, weight: Array) -> None:
        """Set an initializer of the clone."""
        known = self._model.graph.initializers
        held = known[name].const_value if name in known else None
        if held is None:
            raise ModelError(f"the model has no tensor {name!r}{nearest(name, known)}")
        old = held.numpy()
        new = np.ascontiguousarray(weight).astype(old.dtype).reshape(old.shape)
        known[name].const_value = ir.Tensor(new, name=name)

    def observe(self, values: Iterable[str], sink: Sink) -> int:
        """Run the model as it is now."""
        return observe(
            self._model, self._config, self._batches, tuple(values), sink
        ).batches
