"""A function-preserving change of channels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from octavo.adapters.numpy.describe.groups import channels_of
from octavo.adapters.numpy.describe.streams import writers_of
from octavo.adapters.numpy.describe.weights import channel_axis
from octavo.adapters.numpy.graph import Array, Graph, Node, unique
from octavo.adapters.numpy.kernels.axes import along
from octavo.core.numerics.channels import ChannelMap, Factors, channel_maps, is_online
from octavo.core.values.graph import Group


def rescaled(
    graph: Graph, groups: Iterable[Group], factors: Mapping[str, Factors]
) -> Graph:
    """Change what the members of groups read, and the members' weights with it.

    The value is changed in its producer, or by nodes before the members.

    Args:
        graph: As :func:`.prepare.rewrites.optimised` returns it, or rescaled before.
        groups: Of the model as it was opened.
        factors: Group name -> factors.

    Returns:
        A graph that shares every other tensor.

    Raises:
        SchemeError: If a group is unknown or cannot take its factors.
    """
    editor = _Editor(graph)
    for group, change in channel_maps(groups, factors):
        already = editor.nodes[group.members[0]].inputs[0] != group.value
        if is_online(group, change, already=already):
            _Insertion(editor, group).insert(change)
        else:
            for writer in writers_of(graph, group):
                editor.write(editor.nodes[writer.name], group, change)
        for member in group.members:
            editor.read(editor.nodes[member], change)
    return editor.graph()


class _Editor:
    """A graph whose weights are changed, and nodes inserted."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self.nodes = {n.name: n for n in graph.nodes}
        # Value -> the nodes that come behind its producer; '' for the beginning.
        self._inserted: dict[str, list[Node]] = {}
        self._changed: dict[str, Array] = {}
        self._norms = dict(graph.norms)

    def graph(self) -> Graph:
        """Return the changed graph."""
        nodes = list(self._inserted.get("", ()))
        for old in self._graph.nodes:
            node = self.nodes[old.name]
            # A new node object: kernels are kept by node, and its own would hold the old weights.
            reads_changed = not self._changed.keys().isdisjoint(node.inputs)
            nodes.append(node.with_() if reads_changed else node)
            for value in old.outputs:
                nodes += self._inserted.get(value, ())
        initializers = {**self._graph.initializers, **self._changed}
        return self._graph.with_(
            nodes=tuple(nodes), initializers=initializers, norms=self._norms
        )

    def array(self, name: str) -> Array:
        """Return a constant as it is now."""
        changed = self._changed.get(name)
        return self._graph.initializers[name] if changed is None else changed

    def set_array(self, name: str, array: Array) -> None:
        """Add a constant, or change one."""
        self._changed[name] = array

    def _bias(self, node: Node) -> Array | None:
        name = node.input(2)
        return self.array(name) if name else None

    def _set_bias(self, node: Node, bias: Array, dtype: np.dtype) -> None:
        """Give a node a bias; one that has none gains one."""
        name = node.input(2)
        if not name:
            taken = (*self._graph.initializers, *self._changed)
            name = unique(f"{node.name}.bias", taken)
            self.nodes[node.name] = node.with_(inputs=(*node.inputs[:2], name))
        self._changed[name] = bias.astype(dtype)

    def write(self, node: Node, group: Group, change: ChannelMap) -> None:
        """Let a producer write the changed value."""
        assert channels_of(self._graph, node) == group.channels
        name = node.inputs[1]
        old = self.array(name)
        bias = self._bias(node)
        if node.op == "Gemm":
            matrix, moved = change.writer(_turned(node, old), bias)
            new = _turned(node, matrix)
        else:  # a norm's gain or a convolution, whose rows are divided; neither is rotated
            assert change.rotation is None
            moved = None if bias is None else change.apply(bias)
            new = old
            if change.scale is not None:
                scale = np.asarray(change.scale)
                new = old / along(scale, 0, old.ndim)
        self.set_array(name, np.ascontiguousarray(new).astype(old.dtype))
        if moved is not None:
            self._set_bias(node, moved, old.dtype)
        self._change_folded_norm(node, change)

    def _change_folded_norm(self, node: Node, change: ChannelMap) -> None:
        """Let what a batch norm said of a written value follow it.

        After a rotation nothing is known of single channels.
        """
        norm = self._norms.get(node.name)
        if norm is None or change.rotation is not None:
            return
        gain, shift = norm
        scaled = np.asarray(ChannelMap(change.scale).apply(gain))
        self._norms[node.name] = scaled, np.asarray(change.apply(shift))

    def read(self, node: Node, change: ChannelMap) -> None:
        """Let a member's weight read the changed value."""
        name = node.inputs[1]
        old = self.array(name)
        if node.op == "Conv":
            groups = node.get("group", 1)
            new = np.asarray(change.grouped_reader(old, groups))
            self.set_array(name, new.astype(old.dtype))
            return
        matrix = _turned(node, old)
        bias = change.reader_bias(matrix, self._bias(node))
        new = _turned(node, change.reader(matrix))
        self.set_array(name, np.ascontiguousarray(new).astype(old.dtype))
        if bias is not None and change.shift is not None:
            self._set_bias(node, bias, old.dtype)

    def behind(self, value: str) -> list[Node]:
        """Return the list of nodes that are inserted behind the producer of a value."""
        # What nodes inserted before write, and inputs, have no producer of the graph's own.
        place = value if value in self._graph.producers() else ""
        return self._inserted.setdefault(place, [])

    def names(self) -> set[str]:
        """Return every name that is taken."""
        taken = {*self._graph.initializers, *self._changed, *self.nodes}
        for node in self.nodes.values():
            taken.update(node.outputs)
        for nodes in self._inserted.values():
            for node in nodes:
                taken.update(node.outputs)
        return taken


def _turned(node: Node, matrix: Any) -> Any:
    """Return a weight with its channels first, or such a one as the node has it."""
    return matrix if channel_axis(node) == 0 else matrix.T


class _Insertion:
    """Nodes that change a group's value for its members alone."""

    def __init__(self, editor: _Editor, group: Group) -> None:
        self._editor = editor
        self._group = group
        first = editor.nodes[group.members[0]]
        self._value = first.inputs[0]
        self._dtype = editor.array(first.inputs[1]).dtype
        self._nodes = editor.behind(self._value)
        self._taken = editor.names()
        self._count = 0

    def insert(self, change: ChannelMap) -> None:
        """Insert the steps of a change, and let the members read what they write."""
        steps = change.steps(self._group.channels, np.empty(0, np.float32))
        y = self._value
        if steps.shift is not None:
            y = self._node("Sub", y, self._of_model(steps.shift))
        if steps.factor is not None:
            y = self._node("Mul", y, self._of_model(steps.factor))
        if steps.left is not None:
            left = self._of_model(steps.left)
            right = self._of_model(steps.right)
            y = self._rotated(y, left, right)
        nodes = self._editor.nodes
        for member in self._group.members:
            node = nodes[member]
            nodes[member] = node.with_(inputs=(y, *node.inputs[1:]))

    def _of_model(self, array: Any) -> Array:
        """Return an array in the type of the members' weights."""
        return np.asarray(array).astype(self._dtype)

    def _rotated(self, y: str, left: Array, right: Array) -> str:
        """Multiply by a Kronecker product of two matrices: along columns, then along rows."""
        rows, columns = len(left), len(right)
        shape = self._node("Shape", y)
        flat = self._reshaped(y, -1, columns)
        y = self._node("MatMul", flat, right)
        if rows > 1:
            matrices = self._reshaped(y, -1, rows, columns)
            y = self._node("MatMul", left, matrices)
        return self._node("Reshape", y, shape)

    def _reshaped(self, y: str, *shape: int) -> str:
        return self._node("Reshape", y, np.asarray(shape, np.int64))

    def _node(self, op: str, *inputs: str | Array) -> str:
        """Add a node and return its value; arrays become constants."""
        self._count += 1
        name = unique(f"{self._group.value}.{op.lower()}{self._count}", self._taken)
        read = []
        for i, given in enumerate(inputs):
            if isinstance(given, str):
                read.append(given)
                continue
            constant = f"{name}.{i}"
            self._editor.set_array(constant, given)
            read.append(constant)
        self._nodes.append(Node(op, tuple(read), (name,), name))
        self._taken.add(name)
        return name
