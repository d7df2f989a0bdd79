"""Channels that trade scale by a step of their own before the products: y = (W s) (x / s).

For runtimes that fuse an elementwise step into whatever writes the value. No producer has to take a
factor in, whoever else reads the value keeps it as it is, and weights with a scale per channel lose
nothing by it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from octavo.core.numerics.arrays import to_numpy
from octavo.core.numerics.channels import SCALE_ALONE, ChannelMap
from octavo.core.values.graph import Group, Op


def step_groups(ops: Iterable[Op]) -> Iterator[Group]:
    """Yield a ``rescale`` group for each value that linear ops or convolutions multiply.

    Args:
        ops: Of the model, with layouts as the core has them.
    """
    kept = tuple(ops)
    writers = {value: op for op in kept for value in op.outputs}
    readers: dict[str, list[Op]] = {}
    for op in kept:
        if _takes_factors(op):
            readers.setdefault(op.inputs[0], []).append(op)
    for value, members in readers.items():
        if len({(op.type, _channels(op)) for op in members}) > 1:
            continue
        producer, rectified = "", False
        writer = writers.get(value)
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
            takes=SCALE_ALONE,
            online=SCALE_ALONE,
            rectified=rectified,
        )


def step_factors(change: ChannelMap, reader: Op, rank: int) -> np.ndarray:
    """Return what a value is multiplied by before its readers, float32.

    Args:
        change: Scales alone.
        reader: A member of the group.
        rank: The value's number of axes.
    """
    factors = 1 / to_numpy(change.scale).astype(np.float32)
    if reader.type != "conv":
        return np.asarray(factors)
    return np.asarray(factors.reshape(1, -1, *[1] * (rank - 2)))


def reading_weight(change: ChannelMap, reader: Op, weight: np.ndarray) -> np.ndarray:
    """Return the weight that reads the changed value, float32, in the shape that its op states."""
    groups = int(str(reader.attributes.get("groups", 1)))
    return np.ascontiguousarray(to_numpy(change.grouped_reader(weight, groups)))


def _takes_factors(op: Op) -> bool:
    if op.type not in ("linear", "conv") or op.out_of_reach or op.weight is None:
        return False
    is_first = op.type == "conv" or op.weight.channel_axis == 0
    return is_first and not op.weight.shared_with


def _channels(op: Op) -> int:
    """Return how many channels an op reads."""
    assert op.weight is not None
    return op.weight.shape[1] * int(str(op.attributes.get("groups", 1)))


__all__ = ["reading_weight", "step_factors", "step_groups"]
