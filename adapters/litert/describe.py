"""What a .tflite model is, in the core's words: ops with their weights, values, groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from octavo.plugin import (
    Group,
    HeldWeight,
    InputInfo,
    ModelView,
    Op,
    Weight,
    channel_streams,
    keep_companions_float,
    macs,
    shared_weights,
    tied_groups,
    unclaimed_of,
    unique_names,
)

from .graph import Graph
from .site import KINDS, TO_CORE, Site, attributes, parts, refusal

_IMAGES = ("conv", "conv_transpose", "max_pool", "avg_pool")
"""Op types whose activations have their channels second in the core, and last in the file."""

LayOut = Callable[[np.ndarray], np.ndarray]


class Described:
    """A graph as ops.

    Args:
        graph: What is described.

    Attributes:
        sites: Op name -> site, in execution order.
        places: Value -> its tensor, and what lays its array out as the ops see it.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.places: dict[str, tuple[int, LayOut]] = {}
        self._names = value_names(graph)
        nodes = [node for node in graph.nodes if _writes_float(graph, node)]
        self._images = self._tensors_of_images(nodes)
        short = [self._names[node.outputs[0]].split(";")[0] for node in nodes]
        named = zip(unique_names(short), nodes, strict=True)
        sites = [self._site(name, node) for name, node in named]
        movers = [site.op.type for site in sites if site.carries]
        ops = shared_weights(site.op for site in sites)
        # Where an op is alone, as in models that try it, there are no neighbours to go by.
        if len(ops) > 1:
            ops = keep_companions_float(ops, movers)
        self.sites = {
            op.name: replace(site, op=op) for site, op in zip(sites, ops, strict=True)
        }

    @cached_property
    def view(self) -> ModelView:
        """The model as the core sees it."""
        ops = tuple(site.op for site in self.sites.values())
        outputs = tuple(self._names[i] for i in self.graph.outputs)
        concats = [op.name for op in ops if op.type == "concat"]
        scales = [Group(f"concat:{name}", "scale", (name,)) for name in concats]
        return ModelView(
            ops,
            (*tied_groups(ops), *scales, *channel_streams(ops, outputs, _role)),
            input_infos(self.graph),
            outputs,
            unclaimed=unclaimed_of(self.census, ops),
        )

    @cached_property
    def census(self) -> tuple[HeldWeight, ...]:
        """Floating constants of two or more dimensions that operators read, each once."""
        found: dict[str, HeldWeight] = {}
        for node in self.graph.nodes:
            why = f"{self.graph.code(node).lower()} reads it, which takes no quantized weight here"
            for index in node.inputs:
                array = self.graph.constant(int(index))
                # A vector that is stored with axes of one is a bias or a gain.
                if (
                    array is not None
                    and array.dtype.kind == "f"
                    and np.squeeze(array).ndim > 1
                ):
                    name, dtype = self._names[index], self.graph.dtype(index)
                    found.setdefault(name, HeldWeight(name, array.shape, dtype, why))
        for site in self.sites.values():
            for weight in site.op.weights:
                found[weight.name] = HeldWeight(weight.name, weight.shape, weight.dtype)
        return tuple(found.values())

    @cached_property
    def tensors(self) -> dict[str, np.ndarray]:
        """Weights in the core's layout, and biases, by name."""
        found: dict[str, np.ndarray] = {}
        for op, site in ((site.op, site) for site in self.sites.values()):
            if op.weight is not None and site.weight is not None:
                held = self.graph.constant(site.node.inputs[site.weight])
                assert held is not None
                found[op.weight.name] = held.transpose(site.axes)
            if op.bias is not None and site.bias is not None:
                bias = self.graph.constant(site.node.inputs[site.bias])
                assert bias is not None
                found[op.bias] = bias
        return found

    def in_file(self, arrays: Mapping[str, np.ndarray]) -> dict[int, np.ndarray]:
        """Return weights and biases by their tensors, laid out as the file has them."""
        found: dict[int, np.ndarray] = {}
        for site in self.sites.values():
            weight, bias = site.op.weight, site.op.bias
            if weight is not None and weight.name in arrays:
                array = arrays[weight.name].transpose(np.argsort(site.axes))
                found[int(site.node.inputs[site.weight])] = array
            if bias is not None and bias in arrays:
                found[int(site.node.inputs[site.bias])] = arrays[bias]
        return found

    def _site(self, name: str, node: Any) -> Site:
        code = self.graph.code(node)
        positions, at, bias = parts(self.graph, node)
        kind = KINDS.get(code, code.lower())
        if code == "GATHER" and at is not None:
            kind = "embedding"
        weight = None if at is None else self._weight(code, kind, int(node.inputs[at]))
        has_bias = bias is not None and max([-1, *node.inputs[bias:]]) >= 0
        inputs = tuple(self._input(node, at, kind, weight) for at in positions)
        outputs = tuple(self._value(int(index)) for index in node.outputs)
        op = Op(
            name,
            kind,
            inputs,
            outputs,
            weight,
            self._names[node.inputs[bias]] if has_bias else None,
            attributes=attributes(self.graph, node, weight.shape if weight else ()),
            out_of_reach=refusal(self.graph, node, positions, at),
        )
        if inputs:
            count = macs(kind, weight, self._shape(inputs[0]), self._shape(outputs[0]))
            op = replace(op, macs=count)
        return Site(node, code, positions, at, bias, op)

    def _weight(self, code: str, kind: str, index: int) -> Weight:
        held = self.graph.shape(index)
        shape = tuple(held[axis] or 0 for axis in TO_CORE[code])
        return Weight(
            self._names[index], shape, "float32", int(kind == "conv_transpose")
        )

    # Values

    def _tensors_of_images(self, nodes: list[Any]) -> frozenset[int]:
        """Return the tensors that convolutions and pools read or write."""
        found: set[int] = set()
        for node in nodes:
            if KINDS.get(self.graph.code(node)) in _IMAGES:
                found.update(int(i) for i in (*node.inputs, *node.outputs) if i >= 0)
        return frozenset(i for i in found if len(self.graph.shape(i)) == 4)

    def _value(self, index: int) -> str:
        name = self._names[index]
        self.places[name] = (
            index,
            _channels_second if index in self._images else _same,
        )
        return name

    def _shape(self, value: str) -> tuple[int | None, ...]:
        """Return a value's shape as the ops see it."""
        index, lay_out = self.places[value]
        shape = self.graph.shape(index)
        if lay_out is _channels_second:
            shape = (shape[0], shape[3], shape[1], shape[2])
        return shape

    def _input(self, node: Any, at: int, kind: str, weight: Weight | None) -> str:
        """Return an input's value.

        A linear op reads rows of its own width: where the value is an image, or is laid out in
        rows by the operator itself, they are a value of another name.
        """
        index = int(node.inputs[at])
        name = self._value(index)
        if kind not in ("linear", "matmul"):
            return name
        shape = self.graph.shape(index)
        width = shape[-1] if weight is None else weight.shape[1]
        is_row = index not in self._images and shape[-1] in (width, None)
        if is_row or not width:
            return name
        self.places[f"{name}:rows"] = (index, lambda array: array.reshape(-1, width))
        return f"{name}:rows"


_KEEP_CHANNELS = (
    "max_pool", "avg_pool", "pad", "relu", "resize_nearest_neighbor", "space_to_batch_nd",
    "batch_to_space_nd",
)  # fmt: skip
"""Op types that work on each channel of an image by itself, and let factors pass."""


def _role(op: Op) -> Literal["", "keeps", "pools", "flattens"]:
    """Return what an op does to a stream of channels."""
    if op.type == "mean" and op.attributes.get("axes") == (1, 2):
        return "pools"
    if op.type in ("reshape", "squeeze"):
        return "flattens"
    return "keeps" if op.type in _KEEP_CHANNELS else ""


def _writes_float(graph: Graph, node: Any) -> bool:
    """True if an operator writes float32: sizes and places are no matter of precision."""
    written = [int(index) for index in node.outputs]
    return bool(written) and all(graph.dtype(index) == "float32" for index in written)


def _channels_second(array: np.ndarray) -> np.ndarray:
    return array.transpose(0, 3, 1, 2)


def _same(array: np.ndarray) -> np.ndarray:
    return array


def value_names(graph: Graph) -> list[str]:
    """Return a unique name for each tensor; inputs have those that the only signature gives."""
    names = [graph.name(index) for index in range(len(graph.tensors))]
    signatures = [s for s in graph.model.signatureDefs or [] if s.subgraphIndex == 0]
    for entry in signatures[0].inputs or [] if len(signatures) == 1 else []:
        names[entry.tensorIndex] = entry.name.decode()
    return unique_names(names)


def input_infos(graph: Graph) -> tuple[InputInfo, ...]:
    """Return what a model takes, in call order; inputs in codes are fed as floats."""
    names = value_names(graph)
    found = []
    for index in graph.inputs:
        dtype = "float32" if graph.holds_codes(index) else graph.dtype(index)
        found.append(InputInfo(names[index], graph.shape(index), dtype))
    return tuple(found)
