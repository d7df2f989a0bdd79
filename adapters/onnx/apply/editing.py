"""A clone of the prepared graph and its bodies, edited in place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property

import numpy as np
import onnx_ir as ir
from onnx_ir import DataType, Graph, Model, Node, Value

from octavo.adapters.onnx.describe.site import Site
from octavo.adapters.onnx.describe.sites import Sites
from octavo.adapters.onnx.prepare.constants import register
from octavo.adapters.onnx.prepare.patterns import name_of
from octavo.adapters.onnx.prepare.scopes import free_name, owner, scopes, walk
from octavo.core.contract.adapter import OpParameters
from octavo.core.numerics.tensor import QuantizedTensor

from .nodes import declare_like, swap_names
from .packing import tensor

Number = float | int


class Editor:
    """One clone of the prepared model, edited in place.

    Args:
        model: The prepared model; not changed. Every tensor is shared with it.
        sites: Its operations.
        parameters: What the core decided, by op name.

    Attributes:
        model: The clone.
        graph: Its main graph.
        nodes: The clone's nodes by name, bodies included.
        values: The clone's values by name, bodies included.
    """

    def __init__(
        self, model: Model, sites: Sites, parameters: Mapping[str, OpParameters]
    ) -> None:
        self.model = model.clone()
        self.graph = self.model.graph
        self.sites = sites
        self.parameters = parameters
        self.nodes: dict[str, Node] = {}
        self.values: dict[str, Value] = {}
        for node in walk(self.graph):
            self.nodes[node.name or ""] = node
            self._know(node.outputs)
        for scope in scopes(self.graph):
            self._know(scope.inputs)
            self._know(scope.initializers.values())
        self._scalars: dict[tuple[str, DataType, Number], Value] = {}
        self._weights: dict[tuple[int, str], Value] = {}
        self._computed: dict[str, Value] = {}

    def _know(self, values: Iterable[Value]) -> None:
        for value in values:
            self.values[name_of(value)] = value

    def current(self, name: str) -> Value:
        """Return what now stands for a float value."""
        return self.values[name]

    def scalar(self, prefix: str, number: Number, dtype: DataType) -> Value:
        """Return a scalar initializer, shared by all who need the same number."""
        key = (prefix, dtype, number)
        if key not in self._scalars:
            made = len(self._scalars)
            array = np.asarray(number)
            held = tensor(array, dtype, prefix)
            self._scalars[key] = self.initializer(f"{prefix}_{made}", held)
        return self._scalars[key]

    def is_table(self, weight: QuantizedTensor) -> bool:
        """Return whether a look-up reads a quantized weight."""
        return id(weight) in self._tables

    @cached_property
    def _tables(self) -> frozenset[int]:
        tables = []
        for name, given in self.parameters.items():
            if self.sites.sites[name].kind == "embedding":
                tables.append(id(given.weight))
        return frozenset(tables)

    def initializer(self, name: str, held: ir.TensorProtocol) -> Value:
        """Register a tensor under a free name."""
        free = free_name(name, self.graph.initializers, self.values)
        return register(self.graph, free, held)

    def shared(self, name: str, held: ir.TensorProtocol) -> Value:
        """Register a packed weight tensor once, however many ops use it."""
        *_, purpose = name.rsplit("_", 1)
        key = (id(held), purpose)
        if key not in self._weights:
            self._weights[key] = self.initializer(name, held)
        return self._weights[key]

    def computed(self, of: Value, make: Callable[[], Value]) -> Value:
        """Return what ``make`` computes of a shared tensor, written once for all that read it."""
        key = name_of(of)
        if key not in self._computed:
            self._computed[key] = make()
        return self._computed[key]

    def float_bias(self, site: Site, bias: np.ndarray) -> Value:
        """Register an op's bias in float32."""
        held = tensor(bias, DataType.FLOAT, "bias")
        return self.initializer(f"{site.name}_bias", held)

    def bias(self, site: Site, params: OpParameters) -> np.ndarray | None:
        """Return the float bias of an op, a corrected one first."""
        if params.bias is not None:
            corrected = np.asarray(params.bias, np.float32)
            return corrected.ravel()
        if site.bias is None:
            return None
        held = self.values[site.bias].const_value
        assert held is not None
        own = held.numpy().astype(np.float32)
        return own.ravel()

    def after(self, value: Value, nodes: Sequence[Node]) -> None:
        """Insert nodes right after a value's producer, in the graph that the value belongs to."""
        producer = value.producer()
        if producer is not None:
            graph = owner(producer)
            graph.insert_after(producer, nodes)
            return
        around = self.graph
        # An input may be that of a body.
        if value.is_graph_input():
            assert isinstance(value.graph, Graph)
            around = value.graph
        first = around[0]
        around.insert_before(first, nodes)

    def before(self, node: Node, nodes: Sequence[Node]) -> None:
        """Insert nodes right before another, in its own graph."""
        graph = owner(node)
        graph.insert_before(node, nodes)

    def replace(self, site: Site, nodes: Sequence[Node], *, until: Node) -> None:
        """Put nodes in place of a site's up to ``until``; the last one's output takes over."""
        *inner, result = nodes
        for i, node in enumerate(inner):
            name = f"{site.name}_{node.op_type}_{i}"
            node.name = name
            node.outputs[0].name = f"{name}_output"
        result.name = site.name
        main = self.nodes[site.name]
        last = self.nodes[until.name or ""]
        graph = owner(last)
        graph.insert_after(last, list(nodes))
        self.take_over(result.outputs[0], last.outputs[0])
        # What lies behind goes first: it reads what lies before.
        graph.remove(last, safe=True)
        if main is not last:
            owner(main).remove(main, safe=True)

    def take_over(self, result: Value, old: Value) -> None:
        """Let a value be used, named and put out where another one was."""
        declare_like(result, old)
        old.replace_all_uses_with(result, replace_graph_outputs=True)
        swap_names(result, old, "replaced")
        name = name_of(result)
        self.values[name] = result
