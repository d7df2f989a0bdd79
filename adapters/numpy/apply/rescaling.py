"""A function-preserving change of channels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from octavo.adapters.numpy.describe.ops import channel_axis, channels_of
from octavo.adapters.numpy.graph import Graph, Node, unique
from octavo.core.numerics.channels import ChannelMap, Factors, channel_maps, is_online
from octavo.core.values.graph import Group


def rescaled(graph: Graph, groups: Iterable[Group], factors: Mapping[str, Factors]) -> Graph:
    """Change what the members of groups read, in their producer or by nodes before them, and the members' weights.

    Args:
        graph: After :func:`.passes.optimised`, or rescaled before.
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
            editor.insert(group, change)
        else:
            editor.write(editor.nodes[group.producer], group, change)
        for member in group.members:
            editor.read(editor.nodes[member], change)
    return editor.graph()


class _Editor:
    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self.nodes = {n.name: n for n in graph.nodes}
        self._inserted: dict[str, list[Node]] = {}
        self._changed: dict[str, np.ndarray] = {}

    def graph(self) -> Graph:
        """Return the changed graph."""
        nodes = list(self._inserted.get("", ()))
        for old in self._graph.nodes:
            node = self.nodes[old.name]
            # A new node object: kernels are kept by node, and its own would hold the old weights.
            nodes.append(node.with_() if set(self._changed) & set(node.inputs) else node)
            for value in old.outputs:
                nodes += self._inserted.get(value, ())
        return self._graph.with_(
            nodes=tuple(nodes), initializers={**self._graph.initializers, **self._changed}
        )

    def _array(self, name: str) -> np.ndarray:
        return self._changed.get(name, self._graph.initializers.get(name))  # type: ignore[return-value]

    def _bias(self, node: Node) -> np.ndarray | None:
        return self._array(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else None

    def _set_bias(self, node: Node, bias: np.ndarray, dtype: np.dtype) -> None:
        """Give a node a bias; one that has none gains one."""
        if len(node.inputs) > 2 and node.inputs[2]:
            name = node.inputs[2]
        else:
            name = unique(f"{node.name}.bias", (*self._graph.initializers, *self._changed))
            self.nodes[node.name] = node.with_(inputs=(*node.inputs[:2], name))
        self._changed[name] = bias.astype(dtype)

    def write(self, node: Node, group: Group, change: ChannelMap) -> None:
        """Let a producer write the changed value."""
        assert channels_of(self._graph, node) == group.channels
        name, bias = node.inputs[1], self._bias(node)
        old = self._array(name)
        axis = channel_axis(node) if node.op in ("Conv", "Gemm") else 0
        if node.op == "Gemm":
            matrix, moved = change.writer(old if axis == 0 else old.T, bias)
            new = matrix if axis == 0 else matrix.T
        else:  # a norm's gain or a convolution, whose rows are divided; neither is rotated
            assert change.rotation is None
            moved = None if bias is None else change.apply(bias)
            new = (
                old
                if change.scale is None
                else old / np.asarray(change.scale).reshape(-1, *(1,) * (old.ndim - 1))
            )
        self._changed[name] = np.ascontiguousarray(new).astype(old.dtype)
        if moved is not None:
            self._set_bias(node, moved, old.dtype)

    def read(self, node: Node, change: ChannelMap) -> None:
        """Let a member's weight read the changed value."""
        name = node.inputs[1]
        old = self._array(name)
        if node.op == "Conv":
            new = np.asarray(change.grouped_reader(old, node.attributes.get("group", 1)))
            self._changed[name] = new.astype(old.dtype)
            return
        axis = channel_axis(node)
        matrix = old if axis == 0 else old.T
        bias = change.reader_bias(matrix, self._bias(node))
        new = change.reader(matrix)
        self._changed[name] = np.ascontiguousarray(new if axis == 0 else new.T).astype(old.dtype)
        if bias is not None and change.shift is not None:
            self._set_bias(node, bias, old.dtype)

    def insert(self, group: Group, change: ChannelMap) -> None:
        """Change a value by nodes of its own, for the members alone."""
        first = self.nodes[group.members[0]]
        value, dtype = first.inputs[0], self._array(first.inputs[1]).dtype
        steps = change.steps(group.channels, np.empty(0, np.float32))
        nodes = self._inserted.setdefault(self._place(value), [])
        taken = {
            *self._graph.initializers,
            *self._changed,
            *self.nodes,
            *(v for n in self._all() for v in n.outputs),
        }
        count = 0

        def step(op: str, *inputs: str | np.ndarray) -> str:
            nonlocal count
            count += 1
            name = unique(f"{group.value}.{op.lower()}{count}", taken)
            read = []
            for i, given in enumerate(inputs):
                held = given if isinstance(given, str) else f"{name}.{i}"
                if not isinstance(given, str):
                    self._changed[held] = given
                read.append(held)
            nodes.append(Node(op, tuple(read), (name,), name))
            taken.add(name)
            return name

        y = value
        if steps.shift is not None:
            y = step("Sub", y, np.asarray(steps.shift).astype(dtype))
        if steps.factor is not None:
            y = step("Mul", y, np.asarray(steps.factor).astype(dtype))
        if steps.left is not None:
            left, right = (np.asarray(m).astype(dtype) for m in (steps.left, steps.right))
            shape = step("Shape", y)
            y = step("MatMul", step("Reshape", y, np.asarray([-1, len(right)], np.int64)), right)
            if len(left) > 1:
                y = step(
                    "MatMul",
                    left,
                    step("Reshape", y, np.asarray([-1, len(left), len(right)], np.int64)),
                )
            y = step("Reshape", y, shape)
        for member in group.members:
            node = self.nodes[member]
            self.nodes[member] = node.with_(inputs=(y, *node.inputs[1:]))

    def _all(self) -> list[Node]:
        return [*self.nodes.values(), *(n for nodes in self._inserted.values() for n in nodes)]

    def _place(self, value: str) -> str:
        """Return the value of the graph's own nodes behind which nodes that read ``value`` are inserted; '' for the beginning."""
        own = {v for n in self._graph.nodes for v in n.outputs}
        return value if value in own else ""
