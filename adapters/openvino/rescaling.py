"""Channels that can trade scale: y = (W s) (x / s), the division a step of its own.

It fuses into the tail of whatever writes x, as does the rounding behind it; other readers of x keep
it as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import openvino.opset13 as ops

from octavo.plugin import ChannelMap, Factors, Group, Op, channel_maps

from .describe import Site
from .prepare import constant

_SCALE = frozenset({"scale"})


def rescale_groups(sites: Mapping[str, Site]) -> Iterator[Group]:
    """Yield a group for each value that linear ops and convolutions multiply by their weights."""
    writers = {value: site.op for site in sites.values() for value in site.op.outputs}
    readers: dict[str, list[Op]] = {}
    for site in sites.values():
        if _takes_factors(site.op):
            readers.setdefault(site.op.inputs[0], []).append(site.op)
    for value, members in readers.items():
        if len({(op.type, _channels(op)) for op in members}) > 1:
            continue
        writer = writers.get(value)
        producer, rectified = "", False
        if writer is not None and writer.type in ("conv", "linear"):
            producer = writer.name
            rectified = writer.attributes.get("activation") == "relu"
        yield Group(
            f"rescale:{value}",
            "rescale",
            tuple(op.name for op in members),
            producer,
            _channels(members[0]),
            value,
            (value,),
            takes=_SCALE,
            online=_SCALE,
            rectified=rectified,
        )


def _takes_factors(op: Op) -> bool:
    is_product = op.type in ("linear", "conv") and not op.out_of_reach
    return is_product and op.weight is not None and not op.weight.shared_with


def _channels(op: Op) -> int:
    """Return how many channels an op reads."""
    assert op.weight is not None
    return op.weight.shape[1] * int(str(op.attributes.get("groups", 1)))


def rescale(
    model: Any,
    sites: Mapping[str, Site],
    groups: Iterable[Group],
    factors: Mapping[str, Factors],
) -> Any:
    """Return a model of the same function with other channels; every other tensor is shared.

    Args:
        model: The prepared model; not changed.
        sites: Its operations.
        groups: Of the model as it was opened.
        factors: Name of a ``rescale`` group -> factors.

    Raises:
        SchemeError: If a group is unknown or cannot take its factors.
    """
    clone = model.clone()
    nodes = {node.get_friendly_name(): node for node in clone.get_ordered_ops()}
    for group, change in channel_maps(groups, factors):
        members = [sites[name] for name in group.members]
        step = _step(nodes[group.members[0]].input_value(0), change, members[0].op)
        step.set_friendly_name(f"{group.name}/{len(nodes)}")
        nodes[step.get_friendly_name()] = step
        for site in members:
            node = nodes[site.node]
            node.input(0).replace_source_output(step.output(0))
            _multiply_weight(node, site, change)
    clone.validate_nodes_and_infer_types()
    return clone


def _step(value: Any, change: ChannelMap, reader: Op) -> Any:
    """Return a value divided by its factors, as a reader's channels lie."""
    factors = 1 / np.asarray(change.scale, np.float32)
    if reader.type == "conv":
        spatial = value.get_partial_shape().rank.get_length() - 2
        factors = factors.reshape(1, -1, *[1] * spatial)
    return ops.multiply(value, ops.constant(factors))


def _multiply_weight(node: Any, site: Site, change: ChannelMap) -> None:
    held = constant(node.input_value(1))
    op = site.op
    assert held is not None and op.weight is not None
    weight = np.asarray(held.data, np.float32).reshape(op.weight.shape)
    groups = int(str(op.attributes.get("groups", 1)))
    changed = np.asarray(change.grouped_reader(weight, groups))
    made = ops.constant(np.ascontiguousarray(changed).reshape(site.weights[1]))
    made.set_friendly_name(held.get_friendly_name())
    node.input(1).replace_source_output(made.output(0))
