"""Where a model can be quantized: its nodes as operations of the neutral vocabulary."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from octavo.plugin import (
    Flow,
    HeldWeight,
    ModelView,
    Op,
    Weight,
    is_bias_shape,
    keep_companions_float,
    macs,
    shared_weights,
    tied_groups,
    unclaimed_of,
)

from .ports import constant, dtype_of, input_info, name_of, shape_of

_TYPES = {
    "Convolution": "conv", "GroupConvolution": "conv", "MatMul": "linear", "Gather": "embedding",
    "ConvolutionBackpropData": "conv_transpose", "LSTMSequence": "lstm", "GRUSequence": "gru",
    "GroupConvolutionBackpropData": "conv_transpose", "Add": "add", "Multiply": "mul",
    "Concat": "concat", "AvgPool": "avg_pool", "ReduceMean": "avg_pool", "MVN": "layer_norm",
    "RMS": "rms_norm", "Softmax": "softmax", "Relu": "relu", "Gelu": "gelu", "Swish": "silu",
    "Sigmoid": "sigmoid", "Tanh": "tanh", "Interpolate": "resize", "MaxPool": "max_pool",
    "ScaledDotProductAttention": "attention", "Reshape": "reshape", "Transpose": "reshape",
    "Squeeze": "reshape", "Unsqueeze": "reshape",
}  # fmt: skip
"""OpenVINO's type of node -> the core's type of op; others are not shown."""
_CONVOLUTIONS = ("Convolution", "GroupConvolution")
_LONE = "no convolution writes for it alone: it would be computed in float, on rounded numbers"
MOVERS = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "MaxPool")
"""Types that move or select values of their first input and compute nothing."""
_WEIGHTS = {
    "conv": (1,), "conv_transpose": (1,), "linear": (1,), "embedding": (0,),
    "lstm": (4, 5), "gru": (3, 4),
}  # fmt: skip
_CHANNEL_AXES = {"conv_transpose": 1, "lstm": 1, "gru": 1}
_ACTIVATIONS = {"Relu": "relu", "Clamp": "clip"}
STEP = "octavo step: "
"""Begins the names of nodes that a rescaling has put before a product: no ops of the model."""


@dataclass(frozen=True)
class Site:
    """An operation and its nodes, which every clone of the model knows by name.

    Attributes:
        op: As the core sees it; its name is the main node's.
        inputs: Indices of its activation inputs.
        stored: Index of each weight input -> the shape of the model's own constant.
        bias: The node that adds the bias and the index of it there, or None.
        nodes: All nodes of it, and one behind them that may take over their name when it compiles.
    """

    op: Op
    inputs: tuple[int, ...] = ()
    stored: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    bias: tuple[str, int] | None = None
    nodes: tuple[str, ...] = ()


class Description:
    """What a prepared model holds.

    Args:
        model: As :func:`.prepare.prepared` returns it.

    Attributes:
        sites: Its operations, by name.
        ports: Value name -> (node, index of its output).
        view: As the core sees it, without groups for rescaling.
        census: Its floating constants of two or more dimensions.
        ends: Values that somebody reads who is no operation here: outputs, and what is not shown.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.ports: dict[str, tuple[str, int]] = {}
        self.sites: dict[str, Site] = {}
        self._fused: set[str | None] = set()
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._nodes = {n.get_friendly_name(): n for n in model.get_ordered_ops()}
        self._flow = Flow(
            self._nodes,
            lambda name: str(self._nodes[name].get_type_name()),
            lambda name: [self._value(v) for v in self._nodes[name].input_values()],
            lambda name: [self._value(port) for port in self._nodes[name].outputs()],
            [self._value(result.input_value(0)) for result in model.results],
        )
        for name, node in self._nodes.items():
            if name not in self._flow.absorbed and not name.startswith(STEP):
                self._describe(node)
        ops = shared_weights(site.op for site in self.sites.values())
        ops = tuple(map(self._without_lone_sum, keep_companions_float(ops)))
        self.sites = {op.name: replace(self.sites[op.name], op=op) for op in ops}
        self.census = tuple(self._census())
        self.ends = frozenset(self._ends())
        inputs = tuple(map(input_info, model.inputs))
        outputs = tuple(map(name_of, model.outputs))
        groups = tuple(tied_groups(ops, by_type=True))
        unclaimed = unclaimed_of(self.census, ops)
        self.view = ModelView(ops, groups, inputs, outputs, unclaimed=unclaimed)

    def tensor(self, name: str) -> np.ndarray | None:
        """Return a weight or bias in the shape that its op states, float32; None for no name."""
        if name not in self._shapes:
            return None
        array = np.asarray(self._nodes[name].data, np.float32)
        return array.reshape(self._shapes[name])

    def node_type(self, name: str) -> str:
        """Return OpenVINO's type of an operation."""
        return str(self._nodes[name].get_type_name())

    def _ends(self) -> Iterator[str]:
        known = {*self.sites, *self._flow.absorbed}
        for name, node in self._nodes.items():
            # Who asks for a shape alone reads no channel.
            if name not in known and node.get_type_name() != "ShapeOf":
                yield from map(self._value, node.input_values())

    def _describe(self, node: Any) -> None:
        kind = _TYPES.get(node.get_type_name(), "")
        if not kind or not node.get_output_element_type(0).is_real():
            return
        values = node.input_values()
        inputs = [i for i, v in enumerate(values) if _is_activation(v)]
        held = {i: constant(values[i]) for i in _WEIGHTS.get(kind, ())}
        why = _why_double(node)
        if kind == "linear" and held[1] is None:
            kind, held = "matmul", {}
            why = why or ("" if len(inputs) == 2 else "one side is no activation")
        elif held and any(constant is None for constant in held.values()):
            held, why = (
                {},
                why or "its weight is computed at run time, or quantized already",
            )
        if kind == "embedding":
            inputs = []
        if not inputs and not held:
            return
        if kind in _WEIGHTS and held:
            inputs, why = inputs[:1], why or _why_not(node, kind)
        elif node.get_type_name() in MOVERS:
            inputs, why = inputs[:1], "it carries the codes of its input"
        elif kind in ("add", "mul") and len(inputs) < 2:
            why = "one side is a constant"
        elif node.get_type_name() == "ReduceMean" and not _is_global(node):
            kind = "reduce_mean"
        self._add(node, kind, inputs, held, why)

    def _add(
        self, node: Any, kind: str, inputs: list[int], held: dict[int, Any], why: str
    ) -> None:
        """Take in the bias and the activation behind a node, and keep its site."""
        name: str = node.get_friendly_name()
        attributes = _geometry(node) if kind.startswith("conv") else {}
        stored = {i: tuple(h.get_output_shape(0)) for i, h in held.items()}
        weights = [self._weight(h, kind, attributes) for h in held.values()]
        outputs = [self._value(port) for port in node.outputs()]
        nodes, bias, adds = [name], None, None
        if weights and kind in ("linear", "conv", "conv_transpose"):
            absorbed = self._flow.absorb_bias(
                outputs[0],
                ["Add"],
                lambda added: self._is_bias(node, weights[0], added),
            )
            if absorbed is not None and kind == "conv":
                self._fused.add(absorbed.node)
            if absorbed is not None:
                bias, outputs = absorbed.what, [absorbed.value]
                adds = self._nodes[absorbed.node]
                self._shapes[bias] = (-1,)
                nodes.append(absorbed.node)
        if (weights or kind in ("add", "mul")) and kind != "embedding" and not why:
            activation = self._flow.absorb_activation(outputs[0], _ACTIVATIONS)
            if activation is not None:
                attributes["activation"] = activation.what
                outputs = [activation.value]
                nodes.append(activation.node)
        behind = self._flow.only_reader(outputs[0], "Multiply")
        first = weights[0] if weights else None
        op = Op(
            name,
            kind,
            tuple(self._value(node.input_value(i)) for i in inputs),
            tuple(outputs),
            first,
            bias,
            macs(kind, first, shape_of(node.input_value(0)), shape_of(node.output(0))),
            attributes,
            why,
            tuple(weights[1:]),
        )
        place = None
        if adds is not None:
            is_left = constant(adds.input_value(0)) is not None
            place = (adds.get_friendly_name(), 0 if is_left else 1)
        nodes += [behind] if behind is not None else []
        self.sites[name] = Site(op, tuple(inputs), stored, place, tuple(nodes))

    def _weight(self, held: Any, kind: str, attributes: Mapping[str, Any]) -> Weight:
        shape = tuple(held.get_output_shape(0))
        if attributes.get("groups", 1) > 1 or len(shape) > len(
            attributes.get("strides", shape)
        ) + (2 if attributes else 0):
            # OpenVINO has the groups as an axis of their own, the core has none for them.
            shape = (shape[0] * shape[1], *shape[2:])
        name = held.get_friendly_name()
        self._shapes[name] = shape
        dtype = dtype_of(held.get_element_type())
        return Weight(name, shape, dtype, _CHANNEL_AXES.get(kind, 0))

    def _is_bias(self, product: Any, weight: Weight, name: str) -> bool:
        held = self._nodes.get(name)
        shape = shape_of(product.output(0))
        if held is None or held.get_type_name() != "Constant" or shape is None:
            return False
        axis = 1 if "Convolution" in product.get_type_name() else len(shape) - 1
        channels = weight.shape[weight.channel_axis]
        if product.get_type_name() == "GroupConvolutionBackpropData":
            channels *= product.input_value(1).get_shape()[0]
        return is_bias_shape(
            tuple(held.get_output_shape(0)), channels, axis, len(shape)
        )

    def _value(self, port: Any) -> str:
        """Return a value's name: its tensor's, or its node's where another has that."""
        node = port.get_node()
        if node.get_type_name() == "Constant":
            return str(node.get_friendly_name())
        place = (node.get_friendly_name(), port.get_index())
        name = name_of(port)
        if self.ports.setdefault(name, place) != place:
            name = f"{place[0]}:{place[1]}"
            self.ports[name] = place
        return name

    def _without_lone_sum(self, op: Op) -> Op:
        """Return a sum that becomes no part of a convolution's tail as one that stays float."""
        if op.type != "add" or op.out_of_reach:
            return op
        alone = [value for value in op.inputs if self._flow.only_reader(value)]
        writers = [self._flow.producer(value, *_CONVOLUTIONS) for value in alone]
        if any(writers) or any(
            self._flow.producer(v, "Add") in self._fused for v in alone
        ):
            return op
        return replace(op, out_of_reach=_LONE)

    def _census(self) -> list[HeldWeight]:
        found = []
        claimed = {w.name for site in self.sites.values() for w in site.op.weights}
        for name, node in self._nodes.items():
            if node.get_type_name() != "Constant" or constant(node.output(0)) is None:
                continue
            shape = tuple(node.get_output_shape(0))
            is_vector = math.prod(shape) == max(shape, default=1)
            readers = list(node.output(0).get_target_inputs())
            if not readers or len(shape) < 2 or (is_vector and name not in claimed):
                continue
            reader = readers[0].get_node().get_type_name()
            why = f"no low-precision kernel reads a constant of {reader}"
            found.append(
                HeldWeight(name, shape, dtype_of(node.get_element_type()), why)
            )
        return found


def _is_activation(port: Any) -> bool:
    return port.get_element_type().is_real() and constant(port) is None


def _geometry(node: Any) -> dict[str, Any]:
    given = node.get_attributes()
    is_grouped = node.get_type_name().startswith("Group")
    return {
        "groups": node.input_value(1).get_shape()[0] if is_grouped else 1,
        "strides": tuple(given["strides"]),
        "pads": (*given["pads_begin"], *given["pads_end"]),
        "dilations": tuple(given["dilations"]),
    }


def _is_global(mean: Any) -> bool:
    """True for a mean over all axes but the first two: what is pooled globally."""
    shape, axes = shape_of(mean.input_value(0)), mean.input_value(1).get_node()
    if shape is None or axes.get_type_name() != "Constant":
        return False
    found = sorted(int(axis) % len(shape) for axis in axes.data.reshape(-1))
    return len(shape) > 2 and found == list(range(2, len(shape)))


def _why_double(node: Any) -> str:
    if node.get_output_element_type(0).get_type_name() == "f64":
        return "it computes in double precision, which no quantized kernel takes"
    return ""


def _why_not(node: Any, kind: str) -> str:
    """Return why a node with a constant weight is none that can be quantized; '' where it can."""
    if kind == "linear":
        # OpenVINO's offline passes have transposed what was stored by inputs.
        given = node.get_attributes()
        if given["transpose_a"] or not given["transpose_b"]:
            return "its sides are transposed in an unusual way"
        is_matrix = len(node.input_value(1).get_shape()) == 2
        return "" if is_matrix else "its constant side is not a matrix"
    if kind == "embedding":
        axis = node.input_value(2).get_node()
        is_plain = axis.get_type_name() == "Constant" and not np.any(axis.data)
        is_table = is_plain and len(node.input_value(0).get_shape()) == 2
        if not is_table or shape_of(node.input_value(1)) is None:
            return "it looks up no rows of a matrix, or how many axes its indices have is unknown"
    return ""
