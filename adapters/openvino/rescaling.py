"""Channels that trade scale: members read x / s by a step of its own, and multiply it by W s."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import openvino.opset13 as ops

from octavo.plugin import Factors, Group, channel_maps, reading_weight, step_factors

from .describe import STEP, Description, constant


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
    model = found.model.clone()
    nodes = {node.get_friendly_name(): node for node in model.get_ordered_ops()}
    for group, change in channel_maps(groups, factors):
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
    model.validate_nodes_and_infer_types()
    return model
