"""Nodes of their own that change the channels of a value, or change them back."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir import DataType, Graph, Node, Value

from octavo.adapters.onnx.describe.site import STEP
from octavo.adapters.onnx.prepare.constants import add_initializer
from octavo.adapters.onnx.prepare.patterns import name_of
from octavo.adapters.onnx.prepare.scopes import free_name
from octavo.core.numerics.channels import ChannelMap
from octavo.core.values.graph import Group


class StepWriter:
    """Makes the nodes of one value, then inserts them behind its writer.

    Args:
        graph: Changed in place.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._taken: set[str] = set()
        for node in graph:
            values = map(name_of, node.outputs)
            self._taken.add(node.name or "")
            self._taken.update(values)
        self._made: list[Node] = []

    def unique(self, name: str) -> str:
        """Return a name that no node, value or tensor of the graph has, and take it."""
        found = free_name(name, self._taken, self._graph.initializers)
        self._taken.add(found)
        return found

    def changed(self, value: Value, group: Group, change: ChannelMap) -> Value:
        """Shift, scale and rotate the channels of a value."""
        # Only its namespace counts: the steps are to be arrays of NumPy.
        like = np.empty(0, np.float32)
        steps = change.steps(group.channels, like)
        y = value
        if steps.shift is not None:
            shift = np.asarray(steps.shift)
            y = self._step("Sub", [y, shift], value)
        if steps.factor is not None:
            factor = np.asarray(steps.factor)
            y = self._step("Mul", [y, factor], value)
        if steps.left is not None and steps.right is not None:
            left = np.asarray(steps.left)
            right = np.asarray(steps.right)
            y = self._rotated(y, left, right, value)
        return y

    def _rotated(
        self, y: Value, left: np.ndarray, right: np.ndarray, like: Value
    ) -> Value:
        """Multiply the channels by a Kronecker product: rows by ``left``, columns by ``right``."""
        blocks = len(left)
        width = len(right)
        shape = self._step("Shape", [y], None, DataType.INT64)
        flat = np.asarray([-1, width], np.int64)
        y = self._step("Reshape", [y, flat], None)
        y = self._step("MatMul", [y, right], None)
        if blocks > 1:
            stacked = np.asarray([-1, blocks, width], np.int64)
            y = self._step("Reshape", [y, stacked], None)
            y = self._step("MatMul", [left, y], None)
        return self._step("Reshape", [y, shape], like)

    def restored(self, changed: Value, change: ChannelMap) -> Value:
        """Bring a value that was scaled and shifted back to what it was."""
        restored = changed
        if change.scale is not None:
            scale = np.asarray(change.scale)
            restored = self._step("Mul", [restored, scale], changed)
        if change.shift is not None:
            shift = np.asarray(change.shift)
            restored = self._step("Add", [restored, shift], changed)
        return restored

    def _step(
        self,
        op_type: str,
        inputs: list[Value | np.ndarray],
        like: Value | None,
        dtype: DataType | None = None,
    ) -> Value:
        """Make a node, for :meth:`place`; its result has the shape of ``like``."""
        values = [given for given in inputs if isinstance(given, Value)]
        source, *_ = values
        # A step behind a step is named after the value that both change.
        changed, *_ = name_of(source).split("/step/")
        kind = op_type.lower()
        name = self.unique(f"{changed}/step/{kind}")
        read = []
        for i, given in enumerate(inputs):
            if not isinstance(given, Value):
                given = add_initializer(self._graph, f"{name}_{i}", given)
            read.append(given)
        node = ir.node(op_type, read, name=name)
        node.meta[STEP] = True
        result = node.outputs[0]
        result.name = name
        result.type = source.type
        if dtype is not None:
            result.type = ir.TensorType(dtype)
        if like is not None:
            result.shape = like.shape
        self._made.append(node)
        return result

    def place(self, value: Value) -> None:
        """Insert the nodes made so far behind the one that writes ``value``."""
        graph = self._graph
        steps = self._made
        self._made = []
        writer = value.producer()
        if writer is not None:
            graph.insert_after(writer, steps)
            return
        first = graph[0]
        graph.insert_before(first, steps)

    def swap_output(self, old: Value, new: Value) -> None:
        """Let ``new`` be the model's output in place of ``old``, under its name."""
        if not old.is_graph_output():
            return
        outputs = self._graph.outputs
        for i, output in enumerate(outputs):
            if output is old:
                outputs[i] = new
        name = name_of(old)
        # The old one gives the name up first: a graph holds each name once.
        old.name = self.unique(f"{name}_rescaled")
        new.name = name
