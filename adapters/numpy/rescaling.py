"""A function-preserving change of channel scales."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from octavo.core.channels import channel_maps
from octavo.core.graph import Group

from .describe import channel_axis, channels_of
from .graph import Graph


def rescaled(graph: Graph, groups: Iterable[Group], factors: Mapping[str, Any]) -> Graph:
    """Divide what each group's producer writes by its factors and multiply its readers' weights by them.

    Args:
        graph: After :func:`.passes.optimised`.
        groups: The view's groups.
        factors: Group name -> positive factors, shape (channels,).

    Returns:
        A graph that shares every other tensor.

    Raises:
        SchemeError: If a group is unknown, or factors are not positive numbers of its length.
    """
    nodes = {n.name: n for n in graph.nodes}
    changed: dict[str, np.ndarray] = {}

    def scale(name: str, factor: np.ndarray, axis: int) -> None:
        array = changed.get(name, graph.initializers[name])
        shape = [-1 if i == axis else 1 for i in range(array.ndim)]
        changed[name] = (array.astype(np.float32) * factor.reshape(shape)).astype(array.dtype)

    for group, change in channel_maps(groups, factors):
        factor = np.asarray(change.scale, np.float32)
        producer = nodes[group.producer]
        assert channels_of(graph, producer) == group.channels
        scale(producer.inputs[1], 1 / factor, channel_axis(producer) if producer.op in ("Conv", "Gemm") else 0)
        if len(producer.inputs) > 2 and producer.inputs[2]:
            scale(producer.inputs[2], 1 / factor, 0)
        for member in group.members:
            node = nodes[member]
            weight = node.inputs[1]
            count = node.attributes.get("group", 1) if node.op == "Conv" else 1
            if node.op == "Gemm":
                scale(weight, factor, 1 - channel_axis(node))
            elif count == 1:
                scale(weight, factor, 1)
            else:
                # Group g of a convolution reads its own slice of the channels.
                w = changed.get(weight, graph.initializers[weight])
                rows = np.repeat(factor.reshape(count, -1), w.shape[0] // count, axis=0)
                changed[weight] = (w.astype(np.float32) * rows.reshape(w.shape[0], -1, *(1,) * (w.ndim - 2))).astype(w.dtype)
    # New node objects: kernels are kept by node, and theirs would hold the old weights.
    fresh = tuple(n.with_() if set(changed) & set(n.inputs) else n for n in graph.nodes)
    return graph.with_(nodes=fresh, initializers={**graph.initializers, **changed})
