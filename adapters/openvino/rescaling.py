"""Channels that trade scale: in the weights of a stream's ends, else by a step before a product."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import numpy as np
import openvino.opset13 as ops

from octavo.plugin import (
    ChannelMap,
    Factors,
    Group,
    Op,
    channel_maps,
    channel_streams,
    reading_weight,
    rescaled_weights,
    step_factors,
    step_groups,
)

from .describe import STEP, Description
from .ports import constant

Role = Literal["", "keeps", "pools", "flattens"]
_ROLES: Mapping[str, Role] = {
    "Relu": "keeps",
    "MaxPool": "keeps",
    "AvgPool": "keeps",
    "ReduceMean": "pools",
    "Reshape": "flattens",
    "Squeeze": "flattens",
}
"""Type of node -> what it does to a stream of channels; a mean that is not global is no op of the
type ``avg_pool``."""


def rescale_groups(found: Description) -> Iterator[Group]:
    """Yield the ``rescale`` groups of a prepared model.

    A stream of channels that convolutions and linear ops write and read takes factors into their
    weights, sums of branches included. Any other value that products read gets a step of its own
    before them.
    """

    def role(op: Op) -> Role:
        kind = found.node_type(op.name)
        is_partial = kind == "ReduceMean" and op.type != "avg_pool"
        return "" if is_partial else _ROLES.get(kind, "")

    view = found.view
    taken: set[str] = set()
    for group in channel_streams(view.ops, found.ends, role):
        taken.update(group.values)
        yield group
    for group in step_groups(view.ops):
        if group.value not in taken:
            yield group


def rescale(
    found: Description, groups: Iterable[Group], factors: Mapping[str, Factors]
) -> Any:
    """Return a model of the same function with other channels; every other tensor is shared.

    Args:
        found: The prepared model; not changed.
        groups: Of the model as it was opened.
        factors: Name of a ``rescale`` group -> factors.

    Raises:
        SchemeError: If a group is unknown or cannot take its factors.
    """
    kept = tuple(groups)
    changes = list(channel_maps(kept, factors))
    model = found.model.clone()
    nodes = {node.get_friendly_name(): node for node in model.get_ordered_ops()}
    streams = [group for group, _ in changes if not group.online]
    of_streams = {group.name: factors[group.name] for group in streams}
    changed = rescaled_weights(found.view.ops, streams, of_streams, found.tensor)
    for name, array in changed.items():
        _store(nodes[name], array)
    for group, change in changes:
        if group.online:
            _step(found, nodes, group, change)
    model.validate_nodes_and_infer_types()
    return model


def _step(
    found: Description, nodes: dict[str, Any], group: Group, change: ChannelMap
) -> None:
    """Put x / s before the members of a group, and s into their weights."""
    members = [found.sites[name] for name in group.members]
    value = nodes[members[0].op.name].input_value(0)
    rank = value.get_partial_shape().rank.get_length()
    by = step_factors(change, members[0].op, rank)
    step = ops.multiply(value, ops.constant(by))
    step.set_friendly_name(f"{STEP}{group.name} {len(nodes)}")
    nodes[step.get_friendly_name()] = step
    for site in members:
        node, weight = nodes[site.op.name], site.op.weight
        held = constant(node.input_value(1))
        assert held is not None and weight is not None
        old = np.asarray(held.data, np.float32).reshape(weight.shape)
        changed = reading_weight(change, site.op, old).reshape(site.stored[1])
        made = ops.constant(changed)
        made.set_friendly_name(held.get_friendly_name())
        node.input(0).replace_source_output(step.output(0))
        node.input(1).replace_source_output(made.output(0))


def _store(held: Any, array: np.ndarray) -> None:
    """Put another array in the place of a constant, float32 whatever it was stored in."""
    shape = held.get_output_shape(0)
    made = ops.constant(np.ascontiguousarray(array, np.float32).reshape(shape))
    made.set_friendly_name(held.get_friendly_name())
    for reader in list(held.output(0).get_target_inputs()):
        node = reader.get_node()
        is_widened = node.get_type_name() == "Convert"
        readers = node.output(0).get_target_inputs() if is_widened else [reader]
        for each in list(readers):
            each.replace_source_output(made.output(0))
