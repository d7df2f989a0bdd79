"""A graph, ready to run: kernels looked up once, values in numbered slots, each freed after its last use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from octavo.adapters.numpy.graph import Graph, Node
from octavo.adapters.numpy.kernels.casting import dtype_of
from octavo.adapters.numpy.kernels.fallback import native, reference_kernel
from octavo.adapters.numpy.kernels.parallel import available, one_blas_thread
from octavo.adapters.numpy.kernels.registry import Build, Kernel, kernel
from octavo.core.errors import DataError, ModelError, OctavoError, nearest, said
from octavo.core.values.calls import Batch, Call, flat
from octavo.core.values.graph import InputInfo

from .memory import Plan, Tracer

Watch = Callable[[str, np.ndarray], None]
_PLANS = 4  # input shapes whose memory plan is kept


@dataclass(frozen=True, slots=True)
class _Step:
    node: Node
    kernel: Kernel
    allocates: bool
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    frees: tuple[int, ...]
    captures: tuple[tuple[str, int], ...] | None


class Kernels:
    """Makes kernels; those of a session's own nodes are kept, so that every candidate shares its packed float weights.

    Args:
        scratch: Upper bound of a kernel's scratch memory per thread, in bytes.
        threads: Threads that share the rows of one operator; 0 for all cores.
    """

    def __init__(self, scratch: int, threads: int = 0) -> None:
        self.scratch = scratch
        self.threads = threads
        self._known: dict[int, tuple[Node, tuple[Kernel, bool] | None]] = {}

    def keep(self, nodes: Iterable[Node]) -> None:
        """Keep the kernels of these nodes. A candidate's own nodes are not kept: they go when it goes."""
        for node in nodes:
            self._known.setdefault(id(node), (node, None))

    def of(self, node: Node, graph: Graph) -> tuple[Kernel, bool]:
        """Return the node's kernel, and whether it takes ``empty=``."""
        kept = self._known.get(id(node))
        if kept is not None and kept[1] is not None:
            return kept[1]
        made = self._make(node, graph)
        if kept is not None:
            self._known[id(node)] = (node, made)
        return made

    def _make(self, node: Node, graph: Graph) -> tuple[Kernel, bool]:
        if not native(node, graph.opset):
            return reference_kernel(node, graph.opset), False
        constants = {v: graph.initializers[v] for v in node.inputs if v in graph.initializers}
        threads = min(self.threads or available(), available())
        return kernel(
            Build(
                node,
                constants,
                graph.opset,
                self.scratch,
                threads,
                lambda body: self._body(body, graph),
            )
        )

    def _body(
        self, body: Graph, outer: Graph
    ) -> Callable[[list[Any], Mapping[str, Any]], tuple[Any, ...]]:
        """Compile a body; constants around it are its constants too, other outer values are handed in by name."""
        outside = body.captured()
        known = {v: outer.initializers[v] for v in outside if v in outer.initializers}
        free = tuple(v for v in outside if v not in known)
        whole = body.with_(
            inputs=(*body.inputs, *(InputInfo(v, None) for v in free)),
            initializers={**body.initializers, **known},
            opset=outer.opset,
        )
        program = Program(whole, self)
        return lambda inputs, values: program.run(
            [*inputs, *(values[v] for v in free)], planned=False
        )


class Program:
    """Runs a graph.

    Args:
        graph: Checked.
        kernels: Shared between programs of one session.
    """

    def __init__(self, graph: Graph, kernels: Kernels) -> None:
        self.graph = graph
        names: dict[str, int] = {"": 0}
        for value in (*(i.name for i in graph.inputs), *graph.initializers):
            names.setdefault(value, len(names))
        for node in graph.nodes:
            for value in node.outputs:
                names.setdefault(value, len(names))
        self._slots = names
        last: dict[str, int] = {}
        for i, node in enumerate(graph.nodes):
            last.update(dict.fromkeys(graph.reads(node), i))
            for value in node.outputs:
                last.setdefault(value, i)
        keep = {*graph.outputs, *graph.initializers, ""}
        ends: dict[int, list[int]] = {}
        for value, i in last.items():
            if value not in keep:
                ends.setdefault(i, []).append(names[value])
        self._steps = tuple(
            _Step(
                n,
                *kernels.of(n, graph),
                tuple(names[v] for v in n.inputs),
                tuple(names[v] for v in n.outputs),
                tuple(ends.get(i, ())),
                _captures(n, graph, names),
            )
            for i, n in enumerate(graph.nodes)
        )
        self._template: list[Any] = [None] * len(names)
        for value, array in graph.initializers.items():
            self._template[names[value]] = array
        self._outputs = tuple(names[v] for v in graph.outputs)
        self._plans: dict[object, Plan] = {}

    def feed(self, batch: Batch | Any) -> list[np.ndarray]:
        """Return a batch as arrays in the order of the inputs.

        Raises:
            DataError: If names, number, rank or lengths are not the graph's.
        """
        inputs = self.graph.inputs
        if isinstance(batch, (Mapping, tuple, list, Call)):
            batch = flat(
                tuple(batch) if isinstance(batch, list) else batch, tuple(i.name for i in inputs)
            )
        if isinstance(batch, Mapping):
            missing = [i.name for i in inputs if i.name not in batch]
            if missing:
                raise DataError(
                    f"the batch lacks input {missing[0]!r}{nearest(missing[0], batch)}; the model takes {', '.join(i.name for i in inputs)}"
                )
            values = [batch[i.name] for i in inputs]
        else:
            values = list(batch) if isinstance(batch, tuple) else [batch]
            if len(values) != len(inputs):
                raise DataError(
                    f"the model takes {len(inputs)} input(s) ({', '.join(i.name for i in inputs)}), the batch has {len(values)}"
                )
        return [
            _checked(info, np.asarray(value)) for info, value in zip(inputs, values, strict=True)
        ]

    def run(
        self,
        arrays: list[np.ndarray],
        watch: Mapping[str, Watch] | None = None,
        planned: bool = True,
    ) -> tuple[np.ndarray, ...]:
        """Run the graph.

        Args:
            arrays: Inputs in order, as :meth:`feed` returns them.
            watch: Called with (name, array) for each of these values as it is written.
            planned: Reuse the buffers of the memory plan of these input shapes, made in the first run with them.

        Raises:
            ModelError: If an operator fails; the message names the node.
        """
        with one_blas_thread():
            if not planned:
                return self._run(arrays, watch, None)
            key = tuple((a.shape, a.dtype, a.strides) for a in arrays)
            plan = self._plans.get(key)
            if plan is None:
                tracer = Tracer()
                result = self._run(arrays, watch, tracer)
                if len(self._plans) >= _PLANS:
                    self._plans.pop(next(iter(self._plans)))
                self._plans[key] = tracer.plan(self.graph)
                return result
            with plan.lease() as memory:
                return self._run(arrays, watch, memory)

    def plan(self, arrays: list[np.ndarray]) -> Plan:
        """Return the memory plan for inputs of these shapes."""
        self.run(arrays)
        return self._plans[tuple((a.shape, a.dtype, a.strides) for a in arrays)]

    def _run(
        self, arrays: list[np.ndarray], watch: Mapping[str, Watch] | None, memory: Any
    ) -> tuple[np.ndarray, ...]:
        values = list(self._template)
        for info, array in zip(self.graph.inputs, arrays, strict=True):
            values[self._slots[info.name]] = array
            if watch and info.name in watch:
                watch[info.name](info.name, array)
        for number, step in enumerate(self._steps):
            given = [values[i] for i in step.reads]
            named: dict[str, Any] = {}
            if step.captures is not None:
                named["captured"] = {name: values[i] for name, i in step.captures}
            if step.allocates:
                named["empty"] = np.empty if memory is None else memory.allocator(number)
            try:
                result = step.kernel(*given, **named)
            except OctavoError:
                raise
            except Exception as error:  # a stranger's attributes and shapes fail in any way, out of memory among them
                shapes = ", ".join(str(getattr(v, "shape", None)) for v in given)
                raise ModelError(
                    f"node {step.node.name!r} ({step.node.op}) failed on inputs of shape {shapes}: {said(error)}"
                ) from error
            if type(result) is tuple:
                for i, array in zip(step.writes, result, strict=False):
                    values[i] = array
            else:
                values[step.writes[0]] = result
            if watch:
                for name in step.node.outputs:
                    if name in watch:
                        watch[name](name, values[self._slots[name]])
            for i in step.frees:
                values[i] = None
        return tuple(np.asarray(values[i]) for i in self._outputs)


def _checked(info: InputInfo, array: np.ndarray) -> np.ndarray:
    wanted = dtype_of(info.dtype)
    if array.dtype != wanted:
        floats = "fV"  # NumPy calls bfloat16 a void type
        same = array.dtype.kind == wanted.kind or (
            array.dtype.kind in floats and wanted.kind in floats
        )
        if not same and not (array.dtype.kind in "iub" and wanted.kind in "iuf"):
            raise DataError(f"input {info.name!r} is {array.dtype}, the model takes {info.dtype}")
        array = array.astype(wanted)
    if info.shape is not None and (
        len(info.shape) != array.ndim
        or any(w is not None and w != n for w, n in zip(info.shape, array.shape, strict=False))
    ):
        shown = ", ".join("any" if w is None else str(w) for w in info.shape)
        raise DataError(f"input {info.name!r} has shape {array.shape}, the model takes ({shown})")
    return array


def _captures(
    node: Node, graph: Graph, names: Mapping[str, int]
) -> tuple[tuple[str, int], ...] | None:
    """Return the values that a node's bodies read from around it, or None where it has no body."""
    bodies = [a for a in node.attributes.values() if isinstance(a, Graph)]
    if not bodies:
        return None
    wanted = dict.fromkeys(v for body in bodies for v in body.captured())
    return tuple((v, names[v]) for v in wanted)
