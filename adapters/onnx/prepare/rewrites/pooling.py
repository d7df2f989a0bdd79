"""Means over the spatial axes of images, as the pooling that has an integer kernel."""

from __future__ import annotations

import onnx_ir as ir

from octavo.adapters.onnx.prepare.constants import constant, take_over
from octavo.adapters.onnx.prepare.patterns import input_at, int_of, ints_of, rank_of

_CHANNELS_LAST = [0, 2, 3, 1]
"""The permutation by which TensorFlow's exporter brings an image to its own layout."""


def pool_from_mean(node: ir.Node) -> None:
    """Turn ReduceMean over the two spatial axes, of either layout, into GlobalAveragePool."""
    graph = node.graph
    if not isinstance(graph, ir.Graph):
        return
    keeps_axes = int_of(node, "keepdims", 1) != 0
    image = _pooled_image(node, keeps_axes=keeps_axes)
    if image is None:
        return
    last = pool = ir.node("GlobalAveragePool", [image], name=node.name)
    graph.insert_before(node, [pool])
    if not keeps_axes:
        pooled = pool.outputs[0]
        pooled.name = f"{node.outputs[0].name}_pooled"
        pooled.type = image.type
        last = ir.node("Flatten", [pooled], name=f"{node.name}_flatten")
        graph.insert_before(node, [last])
    take_over(last.outputs[0], node.outputs[0])
    graph.remove(node, safe=True)


def _pooled_image(mean: ir.Node, *, keeps_axes: bool) -> ir.Value | None:
    """Return the image, channels first, whose spatial axes a mean is over; None for other means."""
    x = mean.inputs[0]
    axes = _axes(mean)
    if x is None or axes is None or rank_of(x) != 4:
        return None
    reduced = sorted(axis % 4 for axis in axes)
    turn = x.producer()
    if not keeps_axes and turn is not None and ints_of(turn, "perm") == _CHANNELS_LAST:
        if reduced == [1, 2]:
            return turn.inputs[0]
        return None
    if reduced == [2, 3]:
        return x
    return None


def _axes(mean: ir.Node) -> list[int] | None:
    given = ints_of(mean, "axes")
    if given is not None:
        return given
    # From opset 18 on the axes are an input.
    axes = constant(input_at(mean, 1))
    if axes is None:
        return None
    return [int(axis) for axis in axes.ravel()]
