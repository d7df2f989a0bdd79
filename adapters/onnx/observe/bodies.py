"""Observation inside the bodies of If, Loop and Scan: a body is run by itself.

ONNX Runtime shows only values of the main graph. So what a node with a body reads comes out of the
run of the graph around it, and the node is carried out here: a branch once, a loop's body once for
each step. Values of a body are seen as often as they are computed, in the shapes that they have.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx.helper import (
    make_tensor_sequence_value_info,
    make_tensor_value_info,
    np_dtype_to_tensor_dtype,
)
from onnx_ir import Graph, Model, Node, Value

from octavo.adapters.onnx import OnnxConfig
from octavo.adapters.onnx.prepare.patterns import ints_of, name_of
from octavo.adapters.onnx.prepare.scopes import bodies, captured
from octavo.adapters.onnx.run.compiling import compile_proto
from octavo.adapters.onnx.run.parts import part
from octavo.core.contract.adapter import Sink

Arrays = Mapping[str, Any]
"""Name of a value -> what it holds: an array, or a list of arrays for a sequence."""


@dataclass
class Region:
    """A graph with the values that are to be seen in it.

    Attributes:
        graph: The main graph, or a body.
        wanted: Names of values of this graph.
        holders: Node whose bodies hold more of them -> attribute name -> its body.
    """

    graph: Graph
    wanted: list[str] = field(default_factory=list)
    holders: dict[Node, dict[str, Region]] = field(default_factory=dict)

    @cached_property
    def needed(self) -> tuple[Value, ...]:
        """What the nodes with bodies read: their inputs, and what the bodies capture.

        Initializers are left out.
        """
        return captured(self.holders)

    @cached_property
    def outputs(self) -> list[str]:
        """Names of what the graph puts out."""
        return [name_of(v) for v in self.graph.outputs]

    @cached_property
    def fetched(self) -> list[str]:
        """Names of what a run of the body puts out: its outputs, and what is seen or needed."""
        written: set[str | None] = set()
        for node in self.graph:
            written.update(value.name for value in node.outputs)
        found = dict.fromkeys(self.outputs)
        needed = map(name_of, self.needed)
        for name in (*self.wanted, *needed):
            # What comes from the graph around, or goes into the body, is known already.
            if name in written:
                found[name] = None
        return list(found)


def find_region(graph: Graph, values: Collection[str]) -> Region:
    """Return where values stand in a graph and its bodies; graphs without any are left out."""
    region = Region(graph)
    written = list(graph.inputs)
    for node in graph:
        written.extend(node.outputs)
        inner = _inner_regions(node, values)
        if inner:
            region.holders[node] = inner
    region.wanted = [name_of(v) for v in written if v.name in values]
    return region


def _inner_regions(node: Node, values: Collection[str]) -> dict[str, Region]:
    """Return the bodies of a node that hold any of some values, by attribute name."""
    inner = {}
    for label, body in bodies(node):
        found = find_region(body, values)
        if found.wanted or found.holders:
            inner[label] = found
    return inner


class Replay:
    """Carries out nodes with bodies, batch after batch.

    Args:
        model: The model; not changed.
        config: Providers and threads.
        sink: Takes each array of each wanted value.

    Attributes:
        held: Most bytes of one step's arrays that were held at once.
    """

    def __init__(self, model: Model, config: OnnxConfig, sink: Sink) -> None:
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
            kind = node.op_type
            if kind == "If":
                self._branch(node, inner, known)
            elif kind == "Loop":
                self._loop(node, inner["body"], known)
            else:
                self._scan(node, inner["body"], known)

    def _branch(self, node: Node, inner: Mapping[str, Region], known: Arrays) -> None:
        condition = _array(node.inputs[0], known)
        taken = "else_branch"
        if _flag(condition):
            taken = "then_branch"
        if taken in inner:
            self._run(inner[taken], known)

    def _loop(self, node: Node, body: Region, known: Arrays) -> None:
        times, go_on, *states = (_array(value, known) for value in node.inputs)
        names = _input_names(body)
        # Without a number of times the body's own condition alone ends the loop.
        steps: Iterable[int] = count()
        if times is not None:
            most = int(_first(times))
            steps = range(most)
        going = go_on is None or _flag(go_on)
        for step in steps:
            if not going:
                return
            counter = np.array(step)
            condition = np.array(going)
            fed = (counter, condition, *states)
            given = dict(zip(names, fed, strict=True))
            again, *outputs = self._run(body, {**known, **given})
            going = _flag(again)
            # Behind the states come the values that the loop collects.
            states = outputs[: len(states)]

    def _scan(self, node: Node, body: Region, known: Arrays) -> None:
        given = [_array(value, known) for value in node.inputs]
        sequences = node.attributes["num_scan_inputs"].as_int()
        first = len(given) - sequences
        states = given[:first]
        scanned = given[first:]
        defaults = [0] * sequences
        axes = ints_of(node, "scan_input_axes") or defaults
        directions = ints_of(node, "scan_input_directions") or defaults
        names = _input_names(body)
        length = scanned[0].shape[axes[0]]
        for step in range(length):
            from_the_end = length - 1 - step
            fed = list(states)
            for array, axis, is_backwards in zip(
                scanned, axes, directions, strict=True
            ):
                place = step
                if is_backwards:
                    place = from_the_end
                fed.append(np.take(array, place, axis))
            given_here = dict(zip(names, fed, strict=True))
            written = self._run(body, {**known, **given_here})
            # Behind the states come the values that the scan collects.
            states = written[:first]

    def _run(self, region: Region, known: Arrays) -> list[Any]:
        """Run a body once; return its outputs."""
        names = region.fetched
        session = self._session(region, known)
        inputs = [declared.name for declared in session.get_inputs()]
        given = {name: known[name] for name in inputs}
        written = session.run(names, given)
        size = 0
        for held in written:
            # ONNX Runtime gives a sequence as a list, which is not counted.
            if isinstance(held, np.ndarray):
                size += held.nbytes
        self.held = max(self.held, size)
        found = dict(zip(names, written, strict=True))
        everything = {**known, **found}
        for name in region.wanted:
            self._sink(name, everything[name])
        self(region, everything)
        return [found[name] for name in region.outputs]

    def _session(self, region: Region, known: Arrays) -> ort.InferenceSession:
        key = id(region)
        if key not in self._sessions:
            self._sessions[key] = self._compile(region, known)
        return self._sessions[key]

    def _compile(self, region: Region, known: Arrays) -> ort.InferenceSession:
        """Make a session of a body, whose inputs are declared as what they hold this time."""
        graph = region.graph
        nodes = list(graph)
        values = {}
        for node in nodes:
            values.update({v.name: v for v in node.outputs})
        values.update({v.name: v for v in graph.outputs})
        outputs = [values[name] for name in region.fetched]
        outside = captured(graph, graph.outputs)
        # A body's own inputs are among what its nodes read: each is named once.
        inputs = dict.fromkeys([*graph.inputs, *outside])
        proto, held = part(self._model, nodes, list(inputs), outputs)
        for declared in proto.graph.input:
            name = declared.name
            held_now = known[name]
            declared.CopyFrom(_declared(name, held_now))
        for declared in proto.graph.output:
            declared.ClearField("type")
        compiled = compile_proto(proto, held, self._config, lean=True)
        return compiled.session


def _array(value: Value | None, known: Arrays) -> Any:
    """Return what a node's input holds; None where it is left out."""
    if value is None:
        return None
    tensor = value.const_value
    if value.is_initializer() and tensor is not None:
        return tensor.numpy()
    name = name_of(value)
    return known[name]


def _input_names(body: Region) -> list[str]:
    inputs = body.graph.inputs
    return [name_of(value) for value in inputs]


def _first(array: Any) -> Any:
    """Return the one number of an array, of shape () or (1,)."""
    return np.reshape(array, -1)[0]


def _flag(array: Any) -> bool:
    found = _first(array)
    return bool(found)


def _declared(name: str, held: Any) -> onnx.ValueInfoProto:
    """Declare an input of the type that it has, and of any shape."""
    if not isinstance(held, list):
        kind = np_dtype_to_tensor_dtype(held.dtype)
        return make_tensor_value_info(name, kind, None)
    # An empty list says nothing of the type of its elements.
    kind = onnx.TensorProto.FLOAT
    if held:
        first, *_ = held
        kind = np_dtype_to_tensor_dtype(first.dtype)
    return make_tensor_sequence_value_info(name, kind, None)
