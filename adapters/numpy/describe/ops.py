"""The graph as the core sees it: ops, values, groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from octavo.adapters.numpy.graph import Graph, Node
from octavo.adapters.numpy.kernels.registry import Build
from octavo.adapters.numpy.kernels.spatial.geometry import Geometry
from octavo.core.authoring.sites import macs, shared_weights
from octavo.core.values.coverage import unclaimed_of
from octavo.core.values.graph import ModelView, Op, Weight, tied_groups

from .census import census
from .groups import rescale_groups
from .weights import bias_of, channel_axis, weight_of, why_out_of_reach

_TYPES = {
    "Add": "add", "Attention": "attention", "AveragePool": "avg_pool",
    "BatchNormalization": "batch_norm", "Concat": "concat", "Conv": "conv",
    "ConvTranspose": "conv_transpose", "Flatten": "reshape", "GRU": "gru", "Gelu": "gelu",
    "Gemm": "linear", "GlobalAveragePool": "avg_pool", "LSTM": "lstm",
    "LayerNormalization": "layer_norm", "MatMul": "matmul", "MaxPool": "max_pool", "Mul": "mul",
    "RMSNormalization": "rms_norm", "Relu": "relu", "Reshape": "reshape", "Resize": "resize",
    "Sigmoid": "sigmoid", "Softmax": "softmax", "Sum": "add", "Swish": "silu", "Tanh": "tanh",
}  # fmt: skip
"""ONNX operator -> the core's type of op; others are called by their names in lower case."""

Shapes = Mapping[str, tuple[int, ...]]
"""Value name -> shape, for one batch."""


def describe(graph: Graph, shapes: Shapes) -> ModelView:
    """Return the view of an optimised graph.

    Args:
        graph: As :func:`.prepare.rewrites.optimised` returns it.
        shapes: Shapes of values for one batch, from a traced run; may be empty.
    """
    describer = _Describer(graph, shapes)
    ops = shared_weights(describer.op(node) for node in graph.nodes)
    groups = (*tied_groups(ops), *rescale_groups(graph, ops))
    unclaimed = unclaimed_of(census(graph), ops)
    return ModelView(ops, groups, graph.inputs, graph.outputs, _notes(graph), unclaimed)


class _Describer:
    def __init__(self, graph: Graph, shapes: Shapes) -> None:
        self._graph = graph
        self._shapes = shapes

    def op(self, node: Node) -> Op:
        """Return a node as an op."""
        constants = self._graph.initializers
        weight = self._weight(node)
        kind = _type_of(node, weight)
        return Op(
            node.name,
            kind,
            tuple(v for v in node.inputs if v and v not in constants),
            tuple(v for v in node.outputs if v),
            weight,
            bias_of(self._graph, node),
            self._macs(node, kind, weight),
            self._attributes(node, weight),
            why_out_of_reach(self._graph, node),
        )

    def _weight(self, node: Node) -> Weight | None:
        name = weight_of(self._graph, node)
        if not name:
            return None
        array = self._graph.initializers[name]
        origins = self._graph.origins.get(name, ())
        made_of = tuple(source.name for source in origins)
        dtype = str(array.dtype)
        return Weight(name, array.shape, dtype, channel_axis(node), made_of=made_of)

    def _attributes(self, node: Node, weight: Weight | None) -> dict[str, Any]:
        attributes = {k: v for k, v in node.attributes.items() if _is_plain(v)}
        if node.op == "Conv" and weight:
            attributes.update(self._geometry(node, weight.shape[2:]))
        return attributes

    def _geometry(self, node: Node, kernel: tuple[int, ...]) -> dict[str, Any]:
        """State strides, dilations, groups and pads in full.

        What auto_pad means is worked out where the input's shape is known.
        """
        geometry = Geometry.read(Build(node), kernel)
        pads = geometry.pads
        shape = self._shapes.get(node.inputs[0])
        if shape is not None and len(shape) == len(kernel) + 2:
            pairs = geometry.padding(tuple(shape[2:]))
            before, after = zip(*pairs, strict=True)
            pads = (*before, *after)
        return {
            "strides": geometry.strides,
            "dilations": geometry.dilations,
            "groups": node.get("group", 1),
            "pads": pads,
        }

    def _macs(self, node: Node, kind: str, weight: Weight | None) -> int | None:
        """Return a product's multiply-accumulates for one sample; None where not known."""
        read, written = self._shape(node.inputs[0]), self._shape(node.outputs[0])
        return macs(kind, weight, read, written)

    def _shape(self, value: str) -> tuple[int, ...] | None:
        known = self._shapes.get(value)
        if known:
            return known
        constant = self._graph.initializers.get(value)
        return None if constant is None else constant.shape


def _type_of(node: Node, weight: Weight | None) -> str:
    if node.op == "Gather" and weight:
        return "embedding"
    if node.op == "Gemm" and not weight:
        return "matmul"
    return _TYPES.get(node.op, node.op.lower())


def _is_plain(attribute: object) -> bool:
    """True for numbers, text and tuples of whole numbers."""
    if isinstance(attribute, tuple):
        return all(type(i) is int for i in attribute)
    return isinstance(attribute, (int, float, str))


def _notes(graph: Graph) -> tuple[str, ...]:
    outer = [node for node in graph.nodes if node.bodies()]
    notes = [f"the bodies of {n.name!r} ({n.op}) stay in float" for n in outer]
    return tuple(notes)
