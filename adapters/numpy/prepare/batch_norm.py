"""Batch norm folded into the weight before it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from octavo.adapters.numpy.graph import Array, Graph, Node
from octavo.adapters.numpy.kernels.axes import along


class _Moments(NamedTuple):
    """A batch norm's constants, float64: (x - mean) / sqrt(variance) * gamma + beta."""

    gamma: Array
    beta: Array
    mean: Array
    variance: Array


class _Place(NamedTuple):
    """A layer that a norm can be folded into.

    Attributes:
        layer: Convolution or Gemm.
        weight: Its weight.
        bias: Its bias; None where it has none.
        moments: Of the norm.
    """

    layer: Node
    weight: Array
    bias: Array | None
    moments: _Moments


def fold_batch_norm(graph: Graph) -> Graph:
    """Fold a batch norm behind a convolution or Gemm into its weight and bias.

    What it said of its output is kept in ``Graph.norms``.

    Source: Jacob et al. 2018, section 3.2.
    """
    folder = _Folder(graph)
    for norm in graph.nodes:
        place = folder.place_of(norm)
        if place is not None:
            folder.fold(norm, place)
    changed = graph.replaced(folder.changed, folder.constants)
    return changed.with_(norms={**graph.norms, **folder.norms})


class _Folder:
    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._consumers = graph.consumers()
        self._producers = graph.producers()
        self.changed: dict[str, Node | None] = {}
        self.constants: dict[str, Array] = {}
        self.norms: dict[str, tuple[Array, Array]] = {}

    def place_of(self, norm: Node) -> _Place | None:
        """Return the layer that a node can be folded into, None where there is none."""
        is_norm = norm.op == "BatchNormalization"
        # In training mode it puts out its moments too, and depends on the batch.
        if not is_norm or any(norm.outputs[1:]) or norm.get("training_mode", 0):
            return None
        layer = self._producers.get(norm.inputs[0])
        if layer is None or not self._is_free(layer):
            return None
        constants = self._graph.initializers
        weight = constants.get(layer.inputs[1])
        bias = constants.get(layer.input(2))
        moments = [constants.get(v) for v in norm.inputs[1:5]]
        is_bias_computed = layer.input(2) != "" and bias is None
        if weight is None or is_bias_computed or any(m is None for m in moments):
            return None
        wide = [np.asarray(m, np.float64) for m in moments]
        return _Place(layer, weight, bias, _Moments(*wide))

    def _is_free(self, layer: Node) -> bool:
        """True if a layer is one that takes in a norm, and its value is the norm's alone."""
        if layer.op not in ("Conv", "Gemm") or layer.get("activation", ""):
            return False
        if layer.get("alpha", 1.0) != 1.0 or layer.get("beta", 1.0) != 1.0:
            return False
        if layer.name in self.changed:
            return False
        value = layer.outputs[0]
        return len(self._consumers[value]) == 1 and value not in self._graph.outputs

    def fold(self, norm: Node, place: _Place) -> None:
        """Fold a norm into a layer."""
        layer, weight, bias, moments = place
        # In float64, rounded once: the weights are all that remains of the norm.
        deviation = np.sqrt(moments.variance + norm.get("epsilon", 1e-5))
        factor = moments.gamma / deviation
        moved_bias = 0.0 if bias is None else bias * factor
        shift = moments.beta - moments.mean * factor + moved_bias
        is_channel_first = layer.op == "Conv" or layer.get("transB", 0)
        axis = 0 if is_channel_first else 1
        weight_name = self._own(layer, 1, "weight")
        bias_name = self._own(layer, 2, "bias")
        scaled = weight * along(factor, axis, weight.ndim)
        self.constants[weight_name] = scaled.astype(weight.dtype)
        self.constants[bias_name] = shift.astype(weight.dtype)
        inputs = (layer.inputs[0], weight_name, bias_name)
        self.changed[layer.name] = layer.with_(inputs=inputs, outputs=norm.outputs)
        self.changed[norm.name] = None
        gain = moments.gamma.astype(np.float32)
        self.norms[layer.name] = gain, moments.beta.astype(np.float32)

    def _own(self, node: Node, index: int, kind: str) -> str:
        """Return the name of a node's own changed tensor.

        The old one, unless another node reads it too.
        """
        old = node.input(index)
        if old and len(self._consumers[old]) == 1:
            return old
        return f"{node.name}.{kind}"
