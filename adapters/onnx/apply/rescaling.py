"""The ``rescale`` primitive: y = W2 relu(W1 x) = (W2 f) relu((W1 / f) x).

Shifts and rotations where nothing lies between.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir
from onnx_ir import Graph, Model, Node, Value

from octavo.adapters.onnx.describe.groups import NORMS
from octavo.adapters.onnx.describe.site import STEP, Site
from octavo.adapters.onnx.describe.sites import Sites
from octavo.adapters.onnx.describe.streams import find_streams
from octavo.adapters.onnx.describe.written_norms import written_norm
from octavo.adapters.onnx.prepare.constants import (
    add_initializer,
    drop_unused_initializers,
    replace_input,
)
from octavo.adapters.onnx.prepare.folded_norms import (
    FoldedNorm,
    folded_norm,
    keep_folded_norm,
)
from octavo.adapters.onnx.prepare.patterns import input_at
from octavo.core.numerics.channels import ChannelMap, Factors, channel_maps, is_online
from octavo.core.values.graph import Group

from .steps import StepWriter


def rescale(
    model: Model,
    sites: Sites,
    groups: Iterable[Group],
    factors: Mapping[str, Factors],
) -> Model:
    """Return a model of the same function whose groups' values and readers' weights are changed.

    Other tensors are shared.

    Args:
        model: The prepared model, or one that was rescaled before; not changed.
        sites: Its operations.
        groups: Of the model as it was opened.
        factors: Name of a ``rescale`` group -> factors.

    Raises:
        SchemeError: If a group is unknown or cannot take its factors.
    """
    found = find_streams(sites.outside)
    streams = {stream.group().name: stream for stream in found}
    clone = model.clone()
    editor = _Editor(clone.graph)
    for group, change in channel_maps(groups, factors):
        read = editor.read_by(group)
        producer = sites.sites.get(group.producer)
        if is_online(group, change, already=_has_steps(read)):
            editor.insert_steps(read, group, change)
        elif producer is not None and producer.node.op_type in NORMS:
            editor.change_norm(producer, group, change)
        elif producer is not None and written_norm(producer.node) is not None:
            editor.change_written_norm(producer, group, change)
        else:
            stream = streams[group.name]
            for site in stream.writers:
                editor.write(site, change)
        for member in group.members:
            reader = sites.sites[member]
            editor.read(reader, change)
    drop_unused_initializers(clone.graph)
    return clone


def _has_steps(value: Value) -> bool:
    """True if a step of an earlier change writes a value."""
    writer = value.producer()
    return writer is not None and STEP in writer.meta


def _as_rows(matrix: np.ndarray, axis: int) -> np.ndarray:
    """Turn a matrix whose output channels lie along ``axis`` into rows of them, or back."""
    return matrix if axis == 0 else matrix.T


class _Editor:
    """Changes the weights of a graph, and puts steps where weights cannot take the change."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self.nodes = {n.name or "": n for n in graph}
        self._steps = StepWriter(graph)
        self._gained: dict[str, str] = {}  # op -> name of the bias that it gained

    def read_by(self, group: Group) -> Value:
        """Return the value that the members of a group read."""
        first, *_ = group.members
        read = self.nodes[first].inputs[0]
        assert read is not None
        return read

    def _array(self, name: str) -> np.ndarray:
        held = self._graph.initializers[name].const_value
        assert held is not None
        return held.numpy()

    def _weight(self, site: Site) -> tuple[str, int, np.ndarray]:
        """Return the name of an op's weight, the axis of its channels, and its numbers."""
        weight = site.held
        array = self._array(weight.name)
        return weight.name, weight.channel_axis, array

    def _bias_name(self, site: Site) -> str | None:
        return self._gained.get(site.name, site.bias)

    def _bias(self, site: Site) -> np.ndarray | None:
        name = self._bias_name(site)
        if name is None:
            return None
        return self._array(name).ravel()

    def _replace(self, name: str, array: np.ndarray) -> None:
        """Give an initializer other numbers under its own name; the source's tensor stays."""
        value = self._graph.initializers[name]
        old = self._array(name)
        changed = np.ascontiguousarray(array).astype(old.dtype)
        changed = changed.reshape(old.shape)
        value.const_value = ir.Tensor(changed, name=name)

    def _replace_rows(self, name: str, axis: int, rows: np.ndarray) -> None:
        """Replace a matrix, given with a row for each output channel."""
        matrix = _as_rows(rows, axis)
        self._replace(name, matrix)

    def _set_bias(self, site: Site, bias: np.ndarray) -> None:
        """Give a linear op a bias; one that has none gains one."""
        name = self._bias_name(site)
        if name is not None:
            self._replace(name, bias)
            return
        op = site.name
        node = self.nodes[op]
        gained = bias.astype(np.float32)
        held = add_initializer(self._graph, f"{op}_bias", gained)
        self._gained[op] = held.name or ""
        if node.op_type == "Gemm":
            replace_input(node, 2, held)
        else:
            self._add_behind(node, held, f"{op}_added")

    def _add_behind(self, node: Node, held: Value, name: str) -> None:
        """Add a constant to a product, for all who read it."""
        product = node.outputs[0]
        free = self._steps.unique(name)
        add = ir.node("Add", [product, held], name=free)
        result = add.outputs[0]
        result.type = product.type
        result.shape = product.shape
        self._graph.insert_after(node, [add])
        product.replace_all_uses_with(result, replace_graph_outputs=True)
        # The Add itself reads the product, and must go on to do so.
        add.replace_input_with(0, product)
        known_as = product.name or ""
        product.name = self._steps.unique(f"{known_as}_product")
        result.name = known_as

    def write(self, site: Site, change: ChannelMap) -> None:
        """Let a linear op or convolution write the changed value."""
        name, axis, old = self._weight(site)
        bias = self._bias(site)
        self._change_folded_norm(site, change)
        if site.kind == "linear":
            rows = _as_rows(old, axis)
            rows, moved = change.writer(rows, bias)
            self._replace_rows(name, axis, rows)
            if moved is not None:
                self._set_bias(site, moved)
            return
        # Groups with convolutions take factors alone.
        assert change.carries <= {"scale"}
        shape = [1] * old.ndim
        shape[axis] = -1
        divisor = np.asarray(change.scale).reshape(shape)
        self._replace(name, old / divisor)
        if bias is not None:
            changed = change.apply(bias)
            self._set_bias(site, changed)

    def _change_folded_norm(self, site: Site, change: ChannelMap) -> None:
        """Let what a batch norm said of a written value follow it.

        After a rotation nothing is known of single channels.
        """
        node = self.nodes[site.name]
        norm = folded_norm(node)
        if norm is None or change.rotation is not None:
            return
        gain = ChannelMap(change.scale).apply(norm.gain)
        changed = FoldedNorm(np.asarray(gain), np.asarray(change.apply(norm.shift)))
        keep_folded_norm(node, changed)

    def read(self, site: Site, change: ChannelMap) -> None:
        """Let a member's weight read the changed value."""
        name, axis, old = self._weight(site)
        if site.kind == "linear":
            rows = _as_rows(old, axis)
            bias = change.reader_bias(rows, self._bias(site))
            changed_rows = change.reader(rows)
            self._replace_rows(name, axis, changed_rows)
            if bias is not None and change.shift is not None:
                self._set_bias(site, bias)
            return
        attributes = site.op.attributes
        groups = int(str(attributes.get("groups", 1)))
        changed = change.grouped_reader(old, groups)
        self._replace(name, np.asarray(changed))

    def change_norm(self, producer: Site, group: Group, change: ChannelMap) -> None:
        """Let a norm write the changed value.

        Whoever reads it and is no member (a residual add) is given what it knew.
        """
        node = self.nodes[producer.name]
        # A shift moves the norm's own shift alone.
        factors_alone = ChannelMap(change.scale)
        self._change_parameter(node, 1, factors_alone)
        self._change_parameter(node, 2, change)
        self._restore_for_others(node.outputs[0], group, change)

    def change_written_norm(
        self, producer: Site, group: Group, change: ChannelMap
    ) -> None:
        """Let a norm that is written out in single operators write the changed value."""
        norm = written_norm(self.nodes[producer.name])
        assert norm is not None
        self._change_parameter(*norm.gain, ChannelMap(change.scale))
        if norm.shift is not None:
            self._change_parameter(*norm.shift, change)
        self._restore_for_others(norm.last.outputs[0], group, change)

    def _restore_for_others(
        self, changed: Value, group: Group, change: ChannelMap
    ) -> None:
        """Give whoever reads a changed value and is no member what it knew."""
        uses = changed.uses()
        others = [use for use in uses if use.node.name not in group.members]
        if not others and not changed.is_graph_output():
            return
        restored = self._steps.restored(changed, change)
        for user, index in others:
            user.replace_input_with(index, restored)
        self._steps.place(changed)
        self._steps.swap_output(changed, restored)

    def _change_parameter(self, norm: Node, index: int, change: ChannelMap) -> None:
        """Change a norm's scale (input 1) or shift (input 2); one that others read is copied."""
        value = input_at(norm, index)
        if value is None or value.const_value is None:
            return
        array = value.const_value.numpy()
        readers = value.uses()
        if len(readers) > 1:
            value = add_initializer(self._graph, f"{value.name}_rescaled", array)
            replace_input(norm, index, value)
        changed = change.apply(array)
        self._replace(value.name or "", changed)

    def insert_steps(self, value: Value, group: Group, change: ChannelMap) -> None:
        """Give the members a changed value; whoever else reads it keeps it as it is."""
        changed = self._steps.changed(value, group, change)
        for member in group.members:
            self.nodes[member].replace_input_with(0, changed)
        self._steps.place(value)
