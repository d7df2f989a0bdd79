"""The graph of NumPy operations: nodes, initializers and attributes in ONNX terms.

A graph is a value; passes return a new one.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from octavo.core.errors import ModelError, nearest
from octavo.core.values.graph import HeldWeight, InputInfo

Array = np.ndarray
"""An array of any type, the narrow floats and integers of ml_dtypes included."""

OPSET = 21
"""The operator set that a graph built by hand is read with."""


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One operation.

    Attributes:
        op: The ONNX operator's name (``Conv``), or one of this backend's own
            (``octavo.QuantizedConv``).
        inputs: Value names; '' where an optional input is left out.
        outputs: Value names; '' where an optional output is not wanted.
        name: Unique in its graph; what recipes refer to.
        attributes: int, float, str, tuple, array or :class:`Graph` (the body of If, Loop and Scan).
    """

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    name: str
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def with_(self, **changes: Any) -> Node:
        """Return a copy with some fields changed."""
        return replace(self, **changes)

    def get(self, attribute: str, default: Any) -> Any:
        """Return an attribute."""
        return self.attributes.get(attribute, default)

    def input(self, index: int) -> str:
        """Return the name of an input, '' where it is left out."""
        return self.inputs[index] if index < len(self.inputs) else ""

    def bodies(self) -> tuple[Graph, ...]:
        """Return the graphs among the attributes."""
        return tuple(a for a in self.attributes.values() if isinstance(a, Graph))


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """A model.

    Attributes:
        nodes: In execution order.
        initializers: Constant arrays by value name. They are shared, and never written to.
        inputs: In call order.
        outputs: Value names.
        opset: Version of the ONNX operator set whose semantics the nodes follow.
        origins: Folded constant -> the weights that it was computed from; what coverage counts in
            its place.
        norms: Node -> (gain, shift) of the batch norm that was folded into it: each output channel
            has this standard deviation and this mean, before the activation that is fused.
    """

    nodes: tuple[Node, ...]
    initializers: Mapping[str, Array]
    inputs: tuple[InputInfo, ...]
    outputs: tuple[str, ...]
    opset: int = OPSET
    origins: Mapping[str, tuple[HeldWeight, ...]] = field(default_factory=dict)
    norms: Mapping[str, tuple[Array, Array]] = field(default_factory=dict)

    def with_(self, **changes: Any) -> Graph:
        """Return a copy with some fields changed."""
        return replace(self, **changes)

    def replaced(
        self,
        changed: Mapping[str, Node | None],
        constants: Mapping[str, Array] | None = None,
    ) -> Graph:
        """Return a copy with some nodes replaced.

        Args:
            changed: Name of a node -> what stands in its place; None takes it out.
            constants: Initializers that are new or changed.
        """
        nodes = []
        for old in self.nodes:
            node = changed.get(old.name, old)
            if node is not None:
                nodes.append(node)
        initializers = {**self.initializers, **(constants or {})}
        return self.with_(nodes=tuple(nodes), initializers=initializers)

    def check(self) -> Graph:
        """Return self if names are unique and each value is written before it is read.

        Raises:
            ModelError: Naming the node and the value.
        """
        known = set(self.initializers)
        known.update(info.name for info in self.inputs)
        names: set[str] = set()
        for node in self.nodes:
            if node.name in names:
                raise ModelError(
                    f"two nodes are called {node.name!r}; give each its own name"
                )
            names.add(node.name)
            self._check_node(node, known)
            known.update(v for v in node.outputs if v)
        for value in self.outputs:
            if value not in known:
                raise ModelError(
                    f"the graph's output {value!r} is written by no node{nearest(value, known)}"
                )
        return self

    def _check_node(self, node: Node, known: set[str]) -> None:
        """Refuse a node that reads what is not known yet, or writes what is."""
        where = f"node {node.name!r} ({node.op})"
        for value in self.reads(node):
            if value not in known:
                raise ModelError(
                    f"{where} reads value {value!r}, which nothing before it writes"
                    f"{nearest(value, known)}"
                )
        for value in node.outputs:
            if value and value in known:
                raise ModelError(
                    f"{where} writes value {value!r}, which is written already; "
                    "a value is written once"
                )

    @staticmethod
    def reads(node: Node) -> Iterator[str]:
        """Yield the values that a node reads, those that its bodies take from outside included."""
        yield from (v for v in node.inputs if v)
        for body in node.bodies():
            yield from body.captured()

    def captured(self) -> tuple[str, ...]:
        """Return the values that this body reads from the graph around it."""
        own = set(self.initializers)
        own.update(info.name for info in self.inputs)
        # A dict keeps the order of first use.
        wanted: dict[str, None] = {}
        for node in self.nodes:
            own.update(node.outputs)
            wanted.update(dict.fromkeys(self.reads(node)))
        wanted.update(dict.fromkeys(self.outputs))
        return tuple(v for v in wanted if v and v not in own)

    def consumers(self) -> dict[str, list[Node]]:
        """Return the nodes that read each value; the graph's outputs count as read by nobody."""
        found: dict[str, list[Node]] = {}
        for node in self.nodes:
            for value in dict.fromkeys(self.reads(node)):
                found.setdefault(value, []).append(node)
        return found

    def producers(self) -> dict[str, Node]:
        """Return the node that writes each value."""
        found: dict[str, Node] = {}
        for node in self.nodes:
            for value in node.outputs:
                if value:
                    found[value] = node
        return found

    def fingerprint(self) -> str:
        """Return a digest of structure and weights, 16 hex digits, the same in any process."""
        digest = hashlib.sha256()
        for node in self.nodes:
            attributes = {k: _digestible(v) for k, v in sorted(node.attributes.items())}
            row = [node.op, node.inputs, node.outputs, node.name, attributes]
            digest.update(json.dumps(row, sort_keys=True).encode())
        for name in sorted(self.initializers):
            array = np.ascontiguousarray(self.initializers[name])
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            # The memory itself where it can be viewed as bytes; tobytes() is a copy.
            if array.ndim and array.size:
                digest.update(array.view(np.uint8).data)
            else:
                digest.update(array.tobytes())
        inputs = [info.name for info in self.inputs]
        ends = [inputs, list(self.outputs), self.opset]
        digest.update(json.dumps(ends).encode())
        return digest.hexdigest()[:16]


def _digestible(value: Any) -> Any:
    """Return an attribute as JSON takes it."""
    if isinstance(value, Graph):
        return value.fingerprint()
    if isinstance(value, np.ndarray):
        content = hashlib.sha256(np.ascontiguousarray(value).tobytes())
        return [str(value.dtype), list(value.shape), content.hexdigest()]
    return list(value) if isinstance(value, tuple) else value


_PARAMETERS = {
    "Gemm": ("weight", "bias"),
    "Conv": ("weight", "bias"),
    "MatMul": ("weight", "bias"),
}
"""Operator -> what its arrays are called, from the second input on; others' are numbered."""


class Builder:
    """Builds a graph by hand: each ONNX operator is a method; arrays become initializers.

    ```python
    b = Builder()
    x = b.input("x", (None, 64))
    hidden = b.Relu(b.Gemm(x, w1, bias1, name="hidden"))
    graph = b.graph(b.Softmax(b.Gemm(hidden, w2, bias2, name="output")))
    ```
    """

    def __init__(self, opset: int = OPSET) -> None:
        self._opset = opset
        self._nodes: list[Node] = []
        self._initializers: dict[str, Array] = {}
        self._inputs: list[InputInfo] = []
        self._count = itertools.count()

    def input(
        self,
        name: str,
        shape: tuple[int | None, ...] | None = None,
        dtype: str = "float32",
    ) -> str:
        """Declare an input and return its name."""
        self._inputs.append(InputInfo(name, shape, dtype))
        return name

    def constant(self, array: Any, name: str = "") -> str:
        """Add an initializer and return its name."""
        name = name or f"constant_{next(self._count)}"
        self._initializers[name] = np.asarray(array)
        return name

    def node(
        self, op: str, *inputs: Any, name: str = "", outputs: int = 1, **attributes: Any
    ) -> Any:
        """Add a node; inputs are value names, arrays, or None for an optional input left out.

        Returns:
            The output's name, or a tuple of names where ``outputs`` is more than one.
        """
        name = name or f"{op.lower()}_{next(self._count)}"
        kinds = ("0", *_PARAMETERS.get(op, ()))
        read = []
        for i, given in enumerate(inputs):
            kind = kinds[i] if i < len(kinds) else str(i)
            read.append(self._value(given, f"{name}.{kind}"))
        if outputs == 1:
            written: tuple[str, ...] = (f"{name}_out",)
        else:
            written = tuple(f"{name}_out{i}" for i in range(outputs))
        plain = {key: _hashable(value) for key, value in attributes.items()}
        self._nodes.append(Node(op, tuple(read), written, name, plain))
        return written[0] if outputs == 1 else written

    def _value(self, given: Any, name: str) -> str:
        """Return the name of an input; an array becomes a constant of that name."""
        if given is None:
            return ""
        if isinstance(given, str):
            return given
        return self.constant(given, name)

    def __getattr__(self, op: str) -> Callable[..., Any]:
        if not op[:1].isupper():
            raise AttributeError(op)
        return lambda *inputs, **options: self.node(op, *inputs, **options)

    def graph(self, *outputs: str) -> Graph:
        """Return the graph.

        Raises:
            ModelError: If a value is read that nothing writes.
        """
        made = Graph(
            tuple(self._nodes),
            dict(self._initializers),
            tuple(self._inputs),
            outputs,
            self._opset,
        )
        return made.check()


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def unique(name: str, taken: Iterable[str]) -> str:
    """Return ``name``, numbered if it is taken."""
    known = set(taken)
    if name not in known:
        return name
    number = 1
    while f"{name}_{number}" in known:
        number += 1
    return f"{name}_{number}"
