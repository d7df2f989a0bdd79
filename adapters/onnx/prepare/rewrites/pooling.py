"""Means over the spatial axes of images, as the pooling that has an integer kernel."""

from __future__ import annotations

import onnx_ir as ir

from octavo.adapters.onnx.prepare.constants import constant, take_over

_CHANNELS_LAST = [0, 2, 3, 1]
"""The permutation by which TensorFlow's exporter brings an image to its own layout."""


def pool_from_mean(node: ir.Node) -> None:
    """Turn ReduceMean over the two spatial axes, of either layout, into GlobalAveragePool."""
    graph = node.graph
    if not isinstance(graph, ir.Graph):
        return
    keeps_axes = "keepdims" not in node.attributes or node.attributes["keepdims"].as_int() != 0
    image = _pooled_image(node, keeps_axes=keeps_axes)
    if image is None:
        return
    pool = ir.node("GlobalAveragePool", [image], name=node.name)
    new = [pool]
    if not keeps_axes:
        new.append(ir.node("Flatten", [pool.outputs[0]], name=f"{node.name}_flatten"))
        pool.outputs[0].name = f"{node.outputs[0].name}_pooled"
        pool.outputs[0].type = image.type
    graph.insert_before(node, new)
    take_over(new[-1].outputs[0], node.outputs[0])
    graph.remove(node, safe=True)


def _pooled_image(mean: ir.Node, *, keeps_axes: bool) -> ir.Value | None:
    """Return the image, channels first, whose spatial axes a mean is over; None for other means."""
    x, axes = mean.inputs[0], _axes(mean)
    if x is None or axes is None or x.shape is None or len(x.shape) != 4:
        return None
    reduced = sorted(axis % 4 for axis in axes)
    turn = x.producer()
    if not keeps_axes and turn is not None and _permutation(turn) == _CHANNELS_LAST:
        return turn.inputs[0] if reduced == [1, 2] else None
    return x if reduced == [2, 3] else None


def _permutation(node: ir.Node) -> list[int] | None:
    return list(node.attributes["perm"].as_ints()) if "perm" in node.attributes else None


def _axes(mean: ir.Node) -> list[int] | None:
    if "axes" in mean.attributes:
        return [int(axis) for axis in mean.attributes["axes"].as_ints()]
    axes = constant(mean.inputs[1]) if len(mean.inputs) > 1 else None
    return [int(axis) for axis in axes.ravel()] if axes is not None else None
