"""The ``rescale`` primitive: y = W2 relu(W1 x) = (W2 f) relu((W1 / f) x) for positive factors f per channel."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from octavo.core.errors import SchemeError, nearest
from octavo.core.graph import Group

from .folding import add_initializer, drop_unused_initializers, replace_input
from .groups import NORMS
from .sites import Site, Sites


def rescale(model: ir.Model, sites: Sites, factors: Mapping[str, np.ndarray]) -> ir.Model:
    """Return a model of the same function whose groups' values are divided by ``factors``; other tensors are shared.

    Args:
        model: The prepared model; not changed.
        sites: Its operations.
        factors: Name of a ``rescale`` group -> positive factors, shape (channels,).

    Raises:
        SchemeError: If a group is unknown or factors do not fit it.
    """
    groups = {g.name: g for g in sites.view.groups if g.kind == "rescale"}
    clone = model.clone()
    nodes = {n.name or "": n for n in clone.graph}
    for name, given in factors.items():
        if name not in groups:
            raise SchemeError(f"there is no rescale group {name!r}{nearest(name, groups)}")
        group, f = groups[name], np.asarray(given, np.float32)
        if f.shape != (group.channels,) or not np.all(np.isfinite(f) & (f > 0)):
            raise SchemeError(
                f"group {name!r} takes {group.channels} finite factors above 0, got shape {f.shape}, smallest {f.min(initial=np.inf):g}"
            )
        producer = sites.sites[group.producer]
        if producer.node.op_type in NORMS:
            _divide_norm(clone.graph, nodes, producer, group, f)
        else:
            _divide(clone.graph, producer, f)
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
    # Whoever reads the norm and is no member (a residual add) is given the value that it knew.
    members = set(group.members)
    output = node.outputs[0]
    others = [(user, index) for user, index in output.uses() if user.name not in members]
    if not others and not output.is_graph_output():
        return
    restore = ir.node("Mul", [output, add_initializer(graph, f"{output.name}_factors", f)], name=f"{node.name}_restore")
    restored = restore.outputs[0]
    restored.name, restored.type, restored.shape = f"{output.name}_restored", output.type, output.shape
    graph.insert_after(node, [restore])
    for user, index in others:
        user.replace_input_with(index, restored)
    if output.is_graph_output():
        name = output.name
        for i, out in enumerate(graph.outputs):
            if out is output:
                graph.outputs[i] = restored
        output.name, restored.name = f"{name}_rescaled", name
