"""One operation of the graph, with what is fused into it."""

from __future__ import annotations

from dataclasses import dataclass

from onnx_ir import Node, Value

from octavo.adapters.onnx.prepare.patterns import FLOATS, producer_at
from octavo.core.values.graph import Op, Weight

STEP = "octavo.step"
"""Marks nodes that a rescaling has put before a product: no operations of the model."""


@dataclass(frozen=True)
class Site:
    """One operation of the graph.

    Attributes:
        op: As the core sees it.
        node: The main node.
        last: The node whose first output is the op's output (a fused Add or Relu, else ``node``).
        inputs: Indices of the main node's activation inputs.
        roots: For each of them, the value that carriers brought there.
        weight: Index of its weight input, or None.
        bias: Value name of its bias, or None.
        activation: ``relu`` or ``clip`` (ReLU6) where one is fused, else empty.
    """

    op: Op
    node: Node
    last: Node
    inputs: tuple[int, ...]
    roots: tuple[str, ...] = ()
    weight: int | None = None
    bias: str | None = None
    activation: str = ""

    @property
    def name(self) -> str:
        """The op's name."""
        return self.op.name

    @property
    def kind(self) -> str:
        """The op's type, in the neutral vocabulary."""
        return self.op.type

    @property
    def held(self) -> Weight:
        """The weight of an op that has one."""
        assert self.op.weight is not None
        return self.op.weight

    @property
    def before_activation(self) -> Node:
        """The node whose output the fused activation reads; the last node where none is fused."""
        if not self.activation:
            return self.last
        producer = producer_at(self.last, 0)
        assert producer is not None
        return producer

    def input_value(self, position: int) -> Value:
        """Return the value that stands at one of the activation inputs."""
        value = self.node.inputs[self.inputs[position]]
        assert value is not None
        return value


def is_float(value: Value | None) -> bool:
    """True if a value is there and known to be of a floating type."""
    return value is not None and value.dtype in FLOATS


def is_non_float(value: Value) -> bool:
    """True if a value is known to be of a type that is not floating."""
    return value.dtype is not None and value.dtype not in FLOATS
