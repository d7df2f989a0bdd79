"""The ``rescale`` primitive: y = W2 relu(W1 x) = (W2 f) relu((W1 / f) x), and shifts and rotations where nothing lies between."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir

from octavo.adapters.onnx.describe.groups import NORMS
from octavo.adapters.onnx.describe.sites import STEP, Site, Sites
from octavo.adapters.onnx.describe.streams import find_streams
from octavo.adapters.onnx.prepare.folding import (
    add_initializer,
    drop_unused_initializers,
    replace_input,
)
from octavo.core.numerics.channels import ChannelMap, Factors, channel_maps, is_online
from octavo.core.values.graph import Group


def rescale(
    model: ir.Model, sites: Sites, groups: Iterable[Group], factors: Mapping[str, Factors]
) -> ir.Model:
    """Return a model of the same function with the groups' values and their readers' weights changed; other tensors are shared.

    Args:
        model: The prepared model, or one that was rescaled before; not changed.
        sites: Its operations.
        groups: Of the model as it was opened.
        factors: Name of a ``rescale`` group -> factors.

    Raises:
        SchemeError: If a group is unknown or cannot take its factors.
    """
    streams = {s.group().name: s for s in find_streams(sites.outside)}
    clone = model.clone()
    editor = _Editor(clone.graph)
    for group, change in channel_maps(groups, factors):
        read = editor.nodes[group.members[0]].inputs[0]
        assert read is not None
        writer = read.producer()
        if is_online(group, change, already=writer is not None and STEP in writer.meta):
            editor.insert(read, group, change)
        elif (producer := sites.sites[group.producer]).node.op_type in NORMS:
            editor.change_norm(producer, group, change)
        else:
            for site in streams[group.name].writers:
                editor.write(site, change)
        for member in group.members:
            editor.read(sites.sites[member], change)
    drop_unused_initializers(clone.graph)
    return clone


class _Editor:
    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self.nodes = {n.name or "": n for n in graph}
        self._taken = {v.name for n in graph for v in n.outputs} | set(self.nodes)
        self._steps: list[ir.Node] = []
        self._gained: dict[str, str] = {}  # op -> name of the bias that it gained

    def _array(self, name: str) -> np.ndarray:
        held = self._graph.initializers[name].const_value
        assert held is not None
        return held.numpy()

    def _weight(self, site: Site) -> tuple[str, int, np.ndarray]:
        weight = site.op.weight
        assert weight is not None
        return weight.name, weight.channel_axis, self._array(weight.name)

    def _bias(self, site: Site) -> np.ndarray | None:
        name = self._gained.get(site.op.name, site.bias)
        return None if name is None else self._array(name).ravel()

    def _replace(self, name: str, array: np.ndarray) -> None:
        """Give an initializer other numbers under its own name; the source's tensor stays."""
        value = self._graph.initializers[name]
        assert value.const_value is not None
        old = value.const_value.numpy()
        value.const_value = ir.Tensor(
            np.ascontiguousarray(array).astype(old.dtype).reshape(old.shape), name=name
        )

    def _set_bias(self, site: Site, bias: np.ndarray) -> None:
        """Give a linear op a bias; one that has none gains one."""
        name = self._gained.get(site.op.name, site.bias)
        if name is not None:
            self._replace(name, bias)
            return
        node = self.nodes[site.op.name]
        held = add_initializer(self._graph, f"{site.op.name}_bias", bias.astype(np.float32))
        self._gained[site.op.name] = held.name or ""
        if node.op_type == "Gemm":
            replace_input(node, 2, held)
            return
        product = node.outputs[0]
        add = ir.node("Add", [product, held], name=self._unique(f"{site.op.name}_added"))
        result, old = add.outputs[0], product.name or ""
        result.type, result.shape = product.type, product.shape
        self._graph.insert_after(node, [add])
        product.replace_all_uses_with(result, replace_graph_outputs=True)
        add.replace_input_with(0, product)
        product.name, result.name = self._unique(f"{old}_product"), old

    def write(self, site: Site, change: ChannelMap) -> None:
        """Let a linear op or convolution write the changed value."""
        name, axis, old = self._weight(site)
        bias = self._bias(site)
        if site.op.type == "linear":
            matrix, moved = change.writer(old if axis == 0 else old.T, bias)
            self._replace(name, matrix if axis == 0 else matrix.T)
            if moved is not None:
                self._set_bias(site, moved)
            return
        assert change.carries <= {"scale"}
        shape = [1] * old.ndim
        shape[axis] = -1
        self._replace(name, old / np.asarray(change.scale).reshape(shape))
        if bias is not None:
            self._set_bias(site, change.apply(bias))

    def read(self, site: Site, change: ChannelMap) -> None:
        """Let a member's weight read the changed value."""
        name, axis, old = self._weight(site)
        if site.op.type == "linear":
            rows = old if axis == 0 else old.T
            bias, matrix = change.reader_bias(rows, self._bias(site)), change.reader(rows)
            self._replace(name, matrix if axis == 0 else matrix.T)
            if bias is not None and change.shift is not None:
                self._set_bias(site, bias)
            return
        groups = int(str(site.op.attributes.get("groups", 1)))
        self._replace(name, np.asarray(change.grouped_reader(old, groups)))

    def change_norm(self, producer: Site, group: Group, change: ChannelMap) -> None:
        """Let a norm write the changed value; whoever reads it and is no member (a residual add) is given what it knew."""
        node = self.nodes[producer.op.name]
        for index, value in enumerate(node.inputs[1:3], 1):
            if value is not None and value.const_value is not None:
                array = value.const_value.numpy()
                moved = (change if index == 2 else ChannelMap(change.scale)).apply(array)
                if len(value.uses()) > 1:
                    value = add_initializer(self._graph, f"{value.name}_rescaled", array)
                    replace_input(node, index, value)
                self._replace(value.name or "", moved)
        changed, members = node.outputs[0], set(group.members)
        others = [(user, index) for user, index in changed.uses() if user.name not in members]
        if not others and not changed.is_graph_output():
            return
        restored = changed
        for op_type, back in (("Mul", change.scale), ("Add", change.shift)):
            if back is not None:
                restored = self._step(op_type, [restored, np.asarray(back)], changed)
        for user, index in others:
            user.replace_input_with(index, restored)
        self._place(changed)
        self._swap_output(changed, restored)

    def insert(self, value: ir.Value, group: Group, change: ChannelMap) -> None:
        """Give the members a changed value; whoever else reads it keeps it as it is."""
        steps = change.steps(group.channels, np.empty(0, np.float32))
        y = value
        for op_type, array in (("Sub", steps.shift), ("Mul", steps.factor)):
            if array is not None:
                y = self._step(op_type, [y, np.asarray(array)], value)
        if steps.left is not None and steps.right is not None:
            a, b = len(steps.left), len(steps.right)
            shape = self._step("Shape", [y], None, ir.DataType.INT64)
            rows = self._step("Reshape", [y, np.asarray([-1, b], np.int64)], None)
            y = self._step("MatMul", [rows, steps.right], None)
            if a > 1:
                blocks = self._step("Reshape", [y, np.asarray([-1, a, b], np.int64)], None)
                y = self._step("MatMul", [steps.left, blocks], None)
            y = self._step("Reshape", [y, shape], value)
        for member in group.members:
            self.nodes[member].replace_input_with(0, y)
        self._place(value)

    def _step(
        self,
        op_type: str,
        inputs: list[ir.Value | np.ndarray],
        like: ir.Value | None,
        dtype: ir.DataType | None = None,
    ) -> ir.Value:
        """Make a node, for :meth:`_place`; its result has the shape of ``like``."""
        source = next(v for v in inputs if isinstance(v, ir.Value))
        name = self._unique(f"{(source.name or '').split('/step/')[0]}/step/{op_type.lower()}")
        held = [
            v if isinstance(v, ir.Value) else add_initializer(self._graph, f"{name}_{i}", v)
            for i, v in enumerate(inputs)
        ]
        node = ir.node(op_type, held, name=name)
        node.meta[STEP] = True
        result = node.outputs[0]
        result.name, result.type = name, source.type if dtype is None else ir.TensorType(dtype)
        result.shape = None if like is None else like.shape
        self._steps.append(node)
        return result

    def _place(self, value: ir.Value) -> None:
        """Insert the nodes made so far behind the one that writes ``value``."""
        writer, steps = value.producer(), self._steps
        self._steps = []
        if writer is None:
            self._graph.insert_before(self._graph[0], steps)
        else:
            self._graph.insert_after(writer, steps)

    def _unique(self, name: str) -> str:
        unique, i = name, 1
        while unique in self._taken or unique in self._graph.initializers:
            unique, i = f"{name}_{i}", i + 1
        self._taken.add(unique)
        return unique

    def _swap_output(self, old: ir.Value, new: ir.Value) -> None:
        """Let ``new`` be the model's output in place of ``old``, under its name."""
        if not old.is_graph_output():
            return
        name = old.name or ""
        for i, output in enumerate(self._graph.outputs):
            if output is old:
                self._graph.outputs[i] = new
        old.name, new.name = self._unique(f"{name}_rescaled"), name
