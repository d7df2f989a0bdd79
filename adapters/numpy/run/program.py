"""A graph, ready to run: kernels looked up once, values in slots, each freed after its last use."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from octavo.adapters.numpy.graph import Array, Graph, Node
from octavo.adapters.numpy.kernels.parallel import one_blas_thread
from octavo.adapters.numpy.kernels.registry import Kernel
from octavo.core.authoring.feeding import feed
from octavo.core.errors import ModelError, OctavoError, said
from octavo.core.values.calls import Batch
from octavo.core.values.graph import InputInfo

from .kernels import Kernels
from .memory import Allocators, Plan, Tracer

Watch = Callable[[str, Array], None]
_PLANS = 4  # input shapes whose memory plan is kept


@dataclass(frozen=True, slots=True)
class _Step:
    """A node, ready to run.

    Attributes:
        node: The node.
        kernel: Its kernel.
        allocates: The kernel takes ``empty=``.
        reads: Slots of its inputs.
        writes: Slots of its outputs.
        frees: Slots whose values nothing reads afterwards.
        captures: Names and slots of what its bodies read from around them; None without bodies.
    """

    node: Node
    kernel: Kernel
    allocates: bool
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    frees: tuple[int, ...]
    captures: tuple[tuple[str, int], ...] | None


class Program:
    """Runs a graph.

    Args:
        graph: Checked.
        kernels: Shared between programs of one session.
    """

    def __init__(self, graph: Graph, kernels: Kernels) -> None:
        self.graph = graph
        self._slots = _slots_of(graph)
        self._steps = _steps_of(graph, kernels, self._slots)
        # The last slot takes results that the graph leaves out.
        self._template: list[Any] = [None] * (len(self._slots) + 1)
        for value, array in graph.initializers.items():
            self._template[self._slots[value]] = array
        self._inputs = tuple(
            (info.name, self._slots[info.name]) for info in graph.inputs
        )
        self._outputs = _at(self._slots, graph.outputs)
        self._plans: dict[object, Plan] = {}

    def feed(self, batch: Batch | Any) -> list[Array]:
        """Return a batch as arrays in the order of the inputs.

        Raises:
            DataError: If names, number, shapes or types are not the graph's.
        """
        return list(feed(batch, self.graph.inputs).values())

    def run(
        self,
        arrays: list[Array],
        watch: Mapping[str, Watch] | None = None,
        planned: bool = True,
    ) -> tuple[Array, ...]:
        """Run the graph.

        Args:
            arrays: Inputs in order, as :meth:`feed` returns them.
            watch: Called with (name, array) for each of these values as it is written.
            planned: Reuse the buffers of the memory plan of these input shapes, made in the first
                run with them.

        Raises:
            ModelError: If an operator fails; the message names the node.
        """
        with one_blas_thread():
            if not planned:
                return self._run(arrays, watch, None)
            layout = _layout_of(arrays)
            plan = self._plans.get(layout)
            if plan is None:
                return self._traced(layout, arrays, watch)
            with plan.lease() as memory:
                return self._run(arrays, watch, memory)

    def plan(self, arrays: list[Array]) -> Plan:
        """Return the memory plan for inputs of these shapes."""
        self.run(arrays)
        return self._plans[_layout_of(arrays)]

    def timed(self, note: Callable[[Node, float], None]) -> Program:
        """Return the same program, which tells after each step how many seconds it took.

        It shares everything with this one, memory plans too.
        """
        twin = copy(self)
        twin._steps = tuple(_timed(step, note) for step in self._steps)
        return twin

    def _traced(
        self, layout: object, arrays: list[Array], watch: Mapping[str, Watch] | None
    ) -> tuple[Array, ...]:
        """Run the graph, and keep the memory plan of the run."""
        tracer = Tracer()
        result = self._run(arrays, watch, tracer)
        if len(self._plans) >= _PLANS:
            oldest = next(iter(self._plans))
            self._plans.pop(oldest)
        self._plans[layout] = tracer.plan(self.graph)
        return result

    def _run(
        self,
        arrays: list[Array],
        watch: Mapping[str, Watch] | None,
        memory: Allocators | None,
    ) -> tuple[Array, ...]:
        values = list(self._template)
        for (name, slot), array in zip(self._inputs, arrays, strict=True):
            values[slot] = array
            if watch and name in watch:
                watch[name](name, array)
        for number, step in enumerate(self._steps):
            result = _called(number, step, values, memory)
            if type(result) is tuple:
                # Kernels return every result of their operator, nodes may name fewer.
                for slot, array in zip(step.writes, result, strict=False):
                    values[slot] = array
            else:
                values[step.writes[0]] = result
            if watch:
                _show(step, values, watch)
            for slot in step.frees:
                values[slot] = None
        return tuple(np.asarray(values[slot]) for slot in self._outputs)


def _timed(step: _Step, note: Callable[[Node, float], None]) -> _Step:
    """Return a step whose kernel is timed."""

    def kernel(*given: Any, **named: Any) -> Any:
        start = time.perf_counter()
        result = step.kernel(*given, **named)
        note(step.node, time.perf_counter() - start)
        return result

    return replace(step, kernel=kernel)


def _show(step: _Step, values: list[Any], watch: Mapping[str, Watch]) -> None:
    """Call the watchers of what a step has written."""
    for name, slot in zip(step.node.outputs, step.writes, strict=True):
        if name in watch:
            watch[name](name, values[slot])


def _at(slots: Mapping[str, int], values: Iterable[str]) -> tuple[int, ...]:
    return tuple(slots[value] for value in values)


def _steps_of(
    graph: Graph, kernels: Kernels, slots: Mapping[str, int]
) -> tuple[_Step, ...]:
    def compiled(body: Graph) -> Kernel:
        return _compiled(body, graph, kernels)

    ends = _last_uses(graph)
    steps = []
    for i, node in enumerate(graph.nodes):
        kernel, allocates = kernels.of(node, graph, compiled)
        reads = _at(slots, node.inputs)
        writes = tuple(slots[value] if value else len(slots) for value in node.outputs)
        frees = _at(slots, ends.get(i, ()))
        captures = _captures(node, slots)
        steps.append(_Step(node, kernel, allocates, reads, writes, frees, captures))
    return tuple(steps)


def _called(
    number: int, step: _Step, values: list[Any], memory: Allocators | None
) -> Any:
    """Call a step's kernel on what stands in its slots."""
    given = [values[slot] for slot in step.reads]
    named: dict[str, Any] = {}
    if step.captures is not None:
        named["captured"] = {name: values[slot] for name, slot in step.captures}
    if step.allocates:
        named["empty"] = np.empty if memory is None else memory.allocator(number)
    try:
        return step.kernel(*given, **named)
    except OctavoError:
        raise
    # A stranger's attributes and shapes fail in any way, out of memory among them.
    except Exception as error:
        node = step.node
        shapes = ", ".join(str(getattr(v, "shape", None)) for v in given)
        raise ModelError(
            f"node {node.name!r} ({node.op}) failed on inputs of shape {shapes}: {said(error)}"
        ) from error


def _layout_of(arrays: list[Array]) -> object:
    return tuple((a.shape, a.dtype, a.strides) for a in arrays)


def _slots_of(graph: Graph) -> dict[str, int]:
    """Number the values; an input that is left out ('') has a slot, which stays None."""
    values = [info.name for info in graph.inputs]
    values += graph.initializers
    for node in graph.nodes:
        values += node.outputs
    slots = {"": 0}
    for value in values:
        slots.setdefault(value, len(slots))
    return slots


def _last_uses(graph: Graph) -> dict[int, list[str]]:
    """Return for each node's number the values that nothing reads after it."""
    last: dict[str, int] = {}
    for i, node in enumerate(graph.nodes):
        for value in graph.reads(node):
            last[value] = i
        for value in node.outputs:
            last.setdefault(value, i)
    kept = {*graph.outputs, *graph.initializers, ""}
    ends: dict[int, list[str]] = {}
    for value, i in last.items():
        if value not in kept:
            ends.setdefault(i, []).append(value)
    return ends


def _captures(
    node: Node, slots: Mapping[str, int]
) -> tuple[tuple[str, int], ...] | None:
    """Return what a node's bodies read from around it; None where it has none."""
    bodies = node.bodies()
    if not bodies:
        return None
    wanted: dict[str, None] = {}
    for body in bodies:
        wanted.update(dict.fromkeys(body.captured()))
    return tuple((value, slots[value]) for value in wanted)


def _compiled(body: Graph, outer: Graph, kernels: Kernels) -> Kernel:
    """Compile a body.

    Constants around it are its constants too, other outer values are handed in by name.
    """
    outside = body.captured()
    known = {v: outer.initializers[v] for v in outside if v in outer.initializers}
    handed = tuple(v for v in outside if v not in known)
    inputs = (*body.inputs, *(InputInfo(v, None) for v in handed))
    initializers = {**body.initializers, **known}
    whole = body.with_(inputs=inputs, initializers=initializers, opset=outer.opset)
    program = Program(whole, kernels)

    def run(given: list[Any], captured: Mapping[str, Any]) -> tuple[Any, ...]:
        return program.run([*given, *(captured[v] for v in handed)], planned=False)

    return run
