"""The ``rescale`` primitive: y = W2 relu(W1 x) = (W2 f) relu((W1 / f) x) for positive factors f per channel."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from octavo.core.channels import Factors, channel_maps
from octavo.core.graph import Group

from .folding import add_initializer, drop_unused_initializers, replace_input
from .groups import FREE_PRODUCERS, NORMS
from .sites import Site, Sites
from .streams import find_streams


def rescale(model: ir.Model, sites: Sites, factors: Mapping[str, Factors]) -> ir.Model:
    """Return a model of the same function whose groups' values are divided by ``factors``; other tensors are shared.

    Args:
        model: The prepared model; not changed.
        sites: Its operations.
        factors: Name of a ``rescale`` group -> positive factors, shape (channels,).

    Raises:
        SchemeError: If a group is unknown or factors do not fit it.
    """
    streams = {s.group().name: s for s in find_streams(sites.sites)}
    clone = model.clone()
    nodes = {n.name or "": n for n in clone.graph}
    for group, change in channel_maps(sites.view.groups, factors):
        name, f = group.name, np.asarray(change.scale, np.float32)
        producer = sites.sites[name.removeprefix("rescale:")]
        if producer.node.op_type in NORMS:
            _divide_norm(clone.graph, nodes, producer, group, f)
        elif producer.op.type in FREE_PRODUCERS:
            _divide_value(clone.graph, nodes[producer.last.name or ""].outputs[0], group, f)
        else:
            for writer in streams[name].writers:
                _divide(clone.graph, writer, f)
        for member in group.members:
            _multiply(clone.graph, sites.sites[member], f)
    drop_unused_initializers(clone.graph)
    return clone


def _scale(graph: ir.Graph, name: str, factor: np.ndarray) -> None:
    """Multiply an initializer under its own name; the source's tensor stays."""
    value = graph.initializers[name]
    assert value.const_value is not None
    array = value.const_value.numpy()
    value.const_value = ir.Tensor((array * factor).astype(array.dtype), name=name)


def _divide(graph: ir.Graph, producer: Site, f: np.ndarray) -> None:
    weight = producer.op.weight
    assert weight is not None
    shape = [1] * len(weight.shape)
    shape[weight.channel_axis] = -1
    _scale(graph, weight.name, (1 / f).reshape(shape))
    if producer.bias is not None:
        _scale(graph, producer.bias, 1 / f)


def _multiply(graph: ir.Graph, member: Site, f: np.ndarray) -> None:
    weight = member.op.weight
    assert weight is not None
    if member.op.type == "linear":
        _scale(graph, weight.name, f[:, None] if weight.channel_axis == 1 else f[None, :])
        return
    groups = int(str(member.op.attributes.get("groups", 1)))
    spread = np.repeat(f.reshape(groups, -1), weight.shape[0] // groups, axis=0)
    _scale(graph, weight.name, spread.reshape(*spread.shape, *(1,) * (len(weight.shape) - 2)))


def _divide_norm(graph: ir.Graph, nodes: Mapping[str, ir.Node], producer: Site, group: Group, f: np.ndarray) -> None:
    node = nodes[producer.op.name]
    for index, value in enumerate(node.inputs[1:], 1):
        if value is not None and value.const_value is not None:
            array = value.const_value.numpy()
            replace_input(node, index, add_initializer(graph, f"{value.name}_rescaled", (array / f).astype(array.dtype)))
    _restore(graph, node.outputs[0], group, f)


def _readers(value: ir.Value, group: Group) -> tuple[list[tuple[ir.Node, int]], list[tuple[ir.Node, int]]]:
    members = set(group.members)
    uses = [(user, index) for user, index in value.uses()]
    return [u for u in uses if u[0].name in members], [u for u in uses if u[0].name not in members]


def _multiplied(graph: ir.Graph, value: ir.Value, factors: np.ndarray, tag: str) -> ir.Value:
    """Insert value * factors after a value; nobody reads it yet."""
    node = ir.node("Mul", [value, add_initializer(graph, f"{value.name}_factors", factors)], name=f"{value.name}_{tag}")
    result, producer = node.outputs[0], value.producer()
    assert producer is not None
    result.name, result.type, result.shape = f"{value.name}_{tag}", value.type, value.shape
    graph.insert_after(producer, [node])
    return result


def _restore(graph: ir.Graph, divided: ir.Value, group: Group, f: np.ndarray) -> None:
    """Give whoever reads a divided value and is no member (a residual add) the value that it knew."""
    _, others = _readers(divided, group)
    if not others and not divided.is_graph_output():
        return
    restored = _multiplied(graph, divided, f, "restored")
    for user, index in others:
        user.replace_input_with(index, restored)
    _swap_output(graph, divided, restored, "rescaled")


def _divide_value(graph: ir.Graph, value: ir.Value, group: Group, f: np.ndarray) -> None:
    """Give the members the value divided by ``f``; whoever else reads it keeps it as it is."""
    members, _ = _readers(value, group)
    divided = _multiplied(graph, value, (1 / f).astype(np.float32), "divided")
    for user, index in members:
        user.replace_input_with(index, divided)


def _swap_output(graph: ir.Graph, old: ir.Value, new: ir.Value, tag: str) -> None:
    """Let ``new`` be the model's output in place of ``old``, under its name."""
    if not old.is_graph_output():
        return
    name = old.name
    for i, output in enumerate(graph.outputs):
        if output is old:
            graph.outputs[i] = new
    old.name, new.name = f"{name}_{tag}", name
