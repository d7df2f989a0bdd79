"""Observation inside the bodies of If, Loop and Scan: a body is run by itself, with what its node was given.

ONNX Runtime shows only values of the main graph. So what a node with a body reads comes out of the run of the graph
around it, and the node is carried out here: a branch once, a loop's body once for each step. Values of a body are seen
as often as they are computed, in the shapes that they have.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from octavo.adapters.onnx import OnnxConfig
from octavo.adapters.onnx.prepare.scopes import bodies, captured
from octavo.adapters.onnx.run.compiling import compile_proto
from octavo.adapters.onnx.run.parts import part
from octavo.core.contract.adapter import Sink

Arrays = Mapping[str, Any]


@dataclass
class Region:
    """A graph with the values that are to be seen in it, and the nodes in it whose bodies hold more of them.

    Attributes:
        graph: The main graph, or a body.
        wanted: Names of values of this graph.
        holders: Node -> attribute name -> its body.
    """

    graph: ir.Graph
    wanted: list[str] = field(default_factory=list)
    holders: dict[ir.Node, dict[str, Region]] = field(default_factory=dict)

    @cached_property
    def needed(self) -> tuple[ir.Value, ...]:
        """What the nodes with bodies read: their inputs, and what the bodies capture; initializers left out."""
        return captured(self.holders)


def find_region(graph: ir.Graph, values: Collection[str]) -> Region:
    """Return where values stand in a graph and its bodies; graphs without any are left out."""
    region = Region(graph)
    written = [*graph.inputs, *(value for node in graph for value in node.outputs)]
    region.wanted = [v.name or "" for v in written if v.name in values]
    for node in graph:
        inner = {label: find_region(body, values) for label, body in bodies(node)}
        inner = {label: found for label, found in inner.items() if found.wanted or found.holders}
        if inner:
            region.holders[node] = inner
    return region


class Replay:
    """Carries out nodes with bodies, batch after batch.

    Args:
        model: The model; not changed.
        config: Providers and threads.
        sink: Takes each array of each wanted value.

    Attributes:
        held: Most bytes of one step's arrays that were held at once.
    """

    def __init__(self, model: ir.Model, config: OnnxConfig, sink: Sink) -> None:
        self._model = model
        self._config = config
        self._sink = sink
        self._sessions: dict[int, ort.InferenceSession] = {}
        self.held = 0

    def __call__(self, region: Region, known: Arrays) -> None:
        """Carry out the nodes of a region whose bodies hold wanted values.

        Args:
            region: A graph that was just run.
            known: Its inputs, what it captures, and the values that ``region.needed`` names.
        """
        for node, inner in region.holders.items():
            if node.op_type == "If":
                self._branch(node, inner, known)
            elif node.op_type == "Loop":
                self._loop(node, inner["body"], known)
            else:
                self._scan(node, inner["body"], known)

    def _branch(self, node: ir.Node, inner: Mapping[str, Region], known: Arrays) -> None:
        taken = "then_branch" if _flag(_array(node.inputs[0], known)) else "else_branch"
        if taken in inner:
            self._run(inner[taken], known)

    def _loop(self, node: ir.Node, body: Region, known: Arrays) -> None:
        times, go_on, *states = (_array(value, known) for value in node.inputs)
        names = [v.name or "" for v in body.graph.inputs]
        most = int(np.reshape(times, -1)[0]) if times is not None else None
        going = go_on is None or _flag(go_on)
        for step in count():
            if not going or (most is not None and step >= most):
                return
            given = dict(zip(names, (np.array(step), np.array(going), *states), strict=True))
            again, *outputs = self._run(body, {**known, **given})
            going, states = _flag(again), outputs[: len(states)]

    def _scan(self, node: ir.Node, body: Region, known: Arrays) -> None:
        given = [_array(value, known) for value in node.inputs]
        sequences = node.attributes["num_scan_inputs"].as_int()
        states, scanned = given[: len(given) - sequences], given[len(given) - sequences :]
        axes = _ints(node, "scan_input_axes", sequences)
        backwards = _ints(node, "scan_input_directions", sequences)
        names = [v.name or "" for v in body.graph.inputs]
        length = scanned[0].shape[axes[0]]
        for step in range(length):
            places = [length - 1 - step if back else step for back in backwards]
            slices = [
                np.take(a, place, axis)
                for a, place, axis in zip(scanned, places, axes, strict=True)
            ]
            fed = dict(zip(names, (*states, *slices), strict=True))
            states = self._run(body, {**known, **fed})[: len(states)]

    def _run(self, region: Region, known: Arrays) -> list[Any]:
        """Run a body once; return its outputs."""
        written = {v.name for node in region.graph for v in node.outputs}
        outputs = [v.name or "" for v in region.graph.outputs]
        inner = [
            name
            for name in (*region.wanted, *(v.name or "" for v in region.needed))
            if name in written
        ]
        names = list(dict.fromkeys((*outputs, *inner)))
        session = self._session(region, names, known)
        given = {i.name: known[i.name] for i in session.get_inputs()}
        found = dict(zip(names, session.run(names, given), strict=True))
        self.held = max(
            self.held, sum(a.nbytes for a in found.values() if isinstance(a, np.ndarray))
        )
        everything = {**known, **found}
        for name in region.wanted:
            self._sink(name, everything[name])
        self(region, everything)
        return [found[name] for name in outputs]

    def _session(self, region: Region, names: Sequence[str], known: Arrays) -> ort.InferenceSession:
        if id(region) not in self._sessions:
            graph = region.graph
            values = {v.name: v for node in graph for v in node.outputs} | {
                v.name: v for v in graph.outputs
            }
            inputs = dict.fromkeys((*graph.inputs, *captured(graph, graph.outputs)))
            proto, held = part(
                self._model, list(graph), list(inputs), [values[name] for name in names]
            )
            for declared in proto.graph.input:
                declared.CopyFrom(_declared(declared.name, known[declared.name]))
            for declared in proto.graph.output:
                declared.ClearField("type")
            self._sessions[id(region)] = compile_proto(proto, held, self._config, lean=True).session
        return self._sessions[id(region)]


def _array(value: ir.Value | None, known: Arrays) -> Any:
    """Return what a node's input holds; None where it is left out."""
    if value is None:
        return None
    if value.is_initializer() and value.const_value is not None:
        return value.const_value.numpy()
    return known[value.name or ""]


def _flag(array: Any) -> bool:
    return bool(np.reshape(array, -1)[0])


def _ints(node: ir.Node, name: str, length: int) -> list[int]:
    return list(node.attributes[name].as_ints()) if name in node.attributes else [0] * length


def _declared(name: str, held: Any) -> onnx.ValueInfoProto:
    """Declare an input of the type that it has, and of any shape."""
    if isinstance(held, list):
        kind = (
            onnx.helper.np_dtype_to_tensor_dtype(held[0].dtype) if held else onnx.TensorProto.FLOAT
        )
        return onnx.helper.make_tensor_sequence_value_info(name, kind, None)
    return onnx.helper.make_tensor_value_info(
        name, onnx.helper.np_dtype_to_tensor_dtype(held.dtype), None
    )
