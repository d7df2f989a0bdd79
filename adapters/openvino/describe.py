"""Where a model can be quantized: its nodes as operations of the neutral vocabulary."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from octavo.plugin import (
    HeldWeight,
    ModelView,
    Op,
    Weight,
    keep_companions_float,
    tied_groups,
    unclaimed_of,
)

from .ports import (
    constant_number,
    dtype_of,
    input_info,
    is_activation,
    is_decompressed,
    is_spatial,
    macs,
    name_of,
    only_reader,
    why_double,
    why_not_constant,
)
from .prepare import constant

_PRODUCTS = {
    "Convolution": "conv", "GroupConvolution": "conv",
    "ConvolutionBackpropData": "conv_transpose",
    "GroupConvolutionBackpropData": "conv_transpose",
}  # fmt: skip
_PLAIN = {
    "Add": "add", "Multiply": "mul", "Concat": "concat", "AvgPool": "avg_pool",
    "ReduceMean": "avg_pool", "MVN": "layer_norm", "RMS": "rms_norm", "Softmax": "softmax",
    "Relu": "relu", "Gelu": "gelu", "Swish": "silu", "Sigmoid": "sigmoid", "Tanh": "tanh",
    "Interpolate": "resize", "ScaledDotProductAttention": "attention",
}  # fmt: skip
_RECURRENT = {"LSTMSequence": ("lstm", 4, 5), "GRUSequence": ("gru", 3, 4)}
"""Type -> (op type, input of its W, input of its R)."""
MOVERS = {
    "Reshape": "reshape", "Transpose": "reshape", "Squeeze": "reshape",
    "Unsqueeze": "reshape", "MaxPool": "max_pool",
}  # fmt: skip
"""Types that move or select values of their first input and compute nothing."""
_ACTIVATIONS = {"Relu": "relu", "Clamp": "clip"}


@dataclass(frozen=True)
class Site:
    """An operation and its nodes, which every clone of the model knows by name.

    Attributes:
        op: As the core sees it.
        node: The main node.
        inputs: Indices of its activation inputs.
        weights: Index of each weight input -> the shape in which it is stored.
        bias: The node that adds the bias and the index of it there, or None.
        nodes: All nodes of it, and one behind them that may take over their name when it compiles.
    """

    op: Op
    node: str
    inputs: tuple[int, ...] = ()
    weights: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    bias: tuple[str, int] | None = None
    nodes: tuple[str, ...] = ()


class Description:
    """What a prepared model holds: sites by op name, and its view.

    Args:
        model: As :func:`.prepare.prepared` returns it.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.ports: dict[str, tuple[str, int]] = {}
        self.tensors: dict[str, tuple[Any, tuple[int, ...]]] = {}
        self.sites: dict[str, Site] = {}
        self._fused: set[str] = set()
        nodes = model.get_ordered_ops()
        for node in nodes:
            site = self._site(node)
            if site is not None:
                self.sites[site.op.name] = site
        self._note_shared_weights()
        for op in keep_companions_float([site.op for site in self.sites.values()]):
            self.sites[op.name] = replace(self.sites[op.name], op=op)
        held = tuple(_census(nodes, self.tensors))
        ops = tuple(site.op for site in self.sites.values())
        self.census = held
        self.view = ModelView(
            ops,
            tuple(tied_groups(ops, by_type=True)),
            tuple(map(input_info, model.inputs)),
            tuple(name_of(port) for port in model.outputs),
            unclaimed=unclaimed_of(held, ops),
        )

    def tensor(self, name: str) -> np.ndarray:
        """Return a weight or bias in the shape that its op states, float32."""
        node, shape = self.tensors[name]
        return np.asarray(node.data, np.float32).reshape(shape)

    # One node

    def _site(self, node: Any) -> Site | None:
        kind = node.get_type_name()
        if node.get_friendly_name() in self._fused or not node.get_output_size():
            return None
        if not node.get_output_element_type(0).is_real():
            return None
        if kind in _PRODUCTS:
            return self._convolution(node, _PRODUCTS[kind])
        if kind == "MatMul":
            return self._matmul(node)
        if kind == "Gather":
            return self._embedding(node)
        if kind in _RECURRENT:
            return self._recurrent(node)
        if kind in MOVERS and constant(node.input_value(0)) is None:
            why = "it carries the codes of its input"
            return self._made(node, MOVERS[kind], (0,), why=why)
        return self._plain(node) if kind in _PLAIN else None

    def _convolution(self, node: Any, kind: str) -> Site:
        held = constant(node.input_value(1))
        if held is None:
            return self._made(
                node, kind, (0,), why=why_not_constant(node.input_value(1))
            )
        stored = tuple(held.get_output_shape(0))
        is_grouped = node.get_type_name().startswith("Group")
        shape, groups = stored, 1
        if is_grouped:
            # OpenVINO has the groups as an axis of their own, the core has none for them.
            groups = stored[0]
            shape = (stored[0] * stored[1], *stored[2:])
        given = node.get_attributes()
        attributes: dict[str, Any] = {
            "groups": groups,
            "strides": tuple(given["strides"]),
            "pads": (*given["pads_begin"], *given["pads_end"]),
            "dilations": tuple(given["dilations"]),
        }
        axis = 1 if kind == "conv_transpose" else 0
        weight = self._weight(held, shape, axis)
        return self._made(
            node, kind, (0,), {1: stored}, (weight,), extra=attributes, fuses=True
        )

    def _matmul(self, node: Any) -> Site:
        held = constant(node.input_value(1))
        given = node.get_attributes()
        if held is None:
            sides = [i for i in (0, 1) if constant(node.input_value(i)) is None]
            why = "its left side is a constant" if len(sides) < 2 else ""
            if not why and is_decompressed(node.input_value(1)):
                why = why_not_constant(node.input_value(1))
            return self._made(node, "matmul", tuple(sides), why=why)
        stored = tuple(held.get_output_shape(0))
        if len(stored) != 2:
            why = "its constant side is not a matrix"
            return self._made(node, "matmul", (0,), why=why)
        # OpenVINO's offline passes have transposed what was stored by inputs.
        is_plain = given["transpose_b"] and not given["transpose_a"]
        why = "" if is_plain else "its sides are transposed in an unusual way"
        weight = self._weight(held, stored, 0 if given["transpose_b"] else 1)
        return self._made(
            node, "linear", (0,), {1: stored}, (weight,), why=why, fuses=True
        )

    def _embedding(self, node: Any) -> Site | None:
        held = constant(node.input_value(0))
        axis = constant_number(node.input_value(2))
        if held is None or len(held.get_output_shape(0)) != 2 or axis != 0:
            return None
        stored = tuple(held.get_output_shape(0))
        why = ""
        if node.input_value(1).get_partial_shape().rank.is_dynamic:
            why = "how many axes its indices have is unknown"
        weight = self._weight(held, stored, 0)
        return self._made(node, "embedding", (), {0: stored}, (weight,), why=why)

    def _recurrent(self, node: Any) -> Site:
        kind, first, second = _RECURRENT[node.get_type_name()]
        found = [constant(node.input_value(i)) for i in (first, second)]
        held = [h for h in found if h is not None]
        if len(held) < len(found):
            return self._made(node, kind, (0,), why="its weights are no constants")
        stored = {
            index: tuple(h.get_output_shape(0))
            for index, h in zip((first, second), held, strict=True)
        }
        weights = [self._weight(h, tuple(h.get_output_shape(0)), 1) for h in held]
        return self._made(node, kind, (0,), stored, tuple(weights))

    def _plain(self, node: Any) -> Site | None:
        values = node.input_values()
        inputs = [i for i, value in enumerate(values) if is_activation(value)]
        kind = _PLAIN[node.get_type_name()]
        if node.get_type_name() == "ReduceMean" and not is_spatial(node):
            kind = "reduce_mean"
        if kind not in ("add", "mul"):
            return self._made(node, kind, tuple(inputs)) if inputs else None
        why = "" if len(inputs) == 2 else "one side is a constant"
        return self._made(node, kind, tuple(inputs), why=why, fuses=not why)

    def _made(
        self,
        node: Any,
        kind: str,
        inputs: tuple[int, ...],
        stored: Mapping[int, tuple[int, ...]] | None = None,
        weights: tuple[Weight, ...] = (),
        *,
        why: str = "",
        extra: Mapping[str, Any] | None = None,
        fuses: bool = False,
    ) -> Site:
        """Take in the bias and the activation behind a node, and describe it."""
        name = node.get_friendly_name()
        nodes = [name]
        last, bias = node, None
        if fuses and weights:
            last, bias = self._with_bias(node, weights[0])
        attributes = dict(extra or {})
        follower = only_reader(last.output(0)) if fuses else None
        if follower is not None and follower.get_type_name() in _ACTIVATIONS:
            attributes["activation"] = _ACTIVATIONS[follower.get_type_name()]
            self._fused.add(follower.get_friendly_name())
            last = follower
        nodes.append(last.get_friendly_name())
        behind = only_reader(last.output(0))
        if behind is not None and behind.get_type_name() == "Multiply":
            nodes.append(behind.get_friendly_name())
        bias_name = None
        if bias is not None:
            adds, index = bias
            nodes.append(adds.get_friendly_name())
            held = constant(adds.input_value(index))
            assert held is not None
            bias_name = held.get_friendly_name()
            self.tensors[bias_name] = (held, (-1,))
        op = Op(
            name,
            kind,
            tuple(self._value(node.input_value(i)) for i in inputs),
            tuple(self._value(port) for port in last.outputs()),
            weights[0] if weights else None,
            bias_name,
            macs(node, kind, weights),
            attributes,
            why or why_double(node),
            weights[1:],
        )
        return Site(
            op,
            name,
            inputs,
            stored or {},
            (bias[0].get_friendly_name(), bias[1]) if bias else None,
            tuple(dict.fromkeys(nodes)),
        )

    def _with_bias(
        self, node: Any, weight: Weight
    ) -> tuple[Any, tuple[Any, int] | None]:
        """Return the Add of one number per output channel behind a product, where there is one."""
        follower = only_reader(node.output(0))
        if follower is None or follower.get_type_name() != "Add":
            return node, None
        rank = node.output(0).get_partial_shape().rank
        index = 1 if follower.input_value(0).get_node() == node else 0
        held = constant(follower.input_value(index))
        if held is None or rank.is_dynamic:
            return node, None
        shape = tuple(held.get_output_shape(0))
        channels = weight.shape[weight.channel_axis]
        if node.get_type_name().startswith("GroupConvolutionBackprop"):
            channels = node.output(0).get_partial_shape()[1].get_length()
        place = 1 if "Convolution" in node.get_type_name() else rank.get_length() - 1
        wanted = [1] * rank.get_length()
        wanted[place] = channels
        padded = (1,) * (rank.get_length() - len(shape)) + shape
        if padded != tuple(wanted):
            return node, None
        self._fused.add(follower.get_friendly_name())
        return follower, (follower, index)

    # Names

    def _weight(self, held: Any, shape: tuple[int, ...], axis: int) -> Weight:
        name = held.get_friendly_name()
        self.tensors[name] = (held, shape)
        return Weight(name, shape, dtype_of(held.get_element_type()), axis)

    def _value(self, port: Any) -> str:
        name = name_of(port)
        place = (port.get_node().get_friendly_name(), port.get_index())
        if self.ports.setdefault(name, place) != place:
            # The name of a tensor may be the name of another node.
            name = f"{place[0]}:{place[1]}"
            self.ports[name] = place
        return name

    def _note_shared_weights(self) -> None:
        readers: dict[str, list[str]] = {}
        for name, site in self.sites.items():
            if site.op.weight is not None:
                readers.setdefault(site.op.weight.name, []).append(name)
        for names in readers.values():
            for name in names if len(names) > 1 else ():
                site = self.sites[name]
                assert site.op.weight is not None
                others = tuple(n for n in names if n != name)
                weight = replace(site.op.weight, shared_with=others)
                self.sites[name] = replace(site, op=replace(site.op, weight=weight))


def _census(nodes: list[Any], claimed: Collection[str]) -> Iterator[HeldWeight]:
    """Yield the floating constants of two or more dimensions that something reads."""
    for node in nodes:
        is_float = node.get_type_name() == "Constant" and constant(node.output(0))
        if not is_float or len(node.get_output_shape(0)) < 2:
            continue
        shape = tuple(node.get_output_shape(0))
        if math.prod(shape) == max(shape) and node.get_friendly_name() not in claimed:
            # A vector that broadcasts: a bias, a gain.
            continue
        reader = next(iter(node.output(0).get_target_inputs())).get_node()
        why = f"no low-precision kernel reads a constant of {reader.get_type_name()}"
        yield HeldWeight(
            node.get_friendly_name(), shape, dtype_of(node.get_element_type()), why
        )
