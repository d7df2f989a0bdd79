"""Streams of channels: values that share one factor per channel, and the weights at their ends.

Convolutions and linear layers write and read them; sums, pooling and ReLU tie them together. A
positive factor per channel that all writers divide by and all readers multiply by changes nothing
of what the model computes (Nagel et al. 2019, section 4.1).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from octavo.core.numerics.affine import Array
from octavo.core.numerics.channels import SCALE_ALONE, Factors, channel_maps
from octavo.core.values.graph import Group, Op

Role = Literal["", "keeps", "pools", "flattens"]
"""What an op without a weight does to a stream.

``keeps``: each channel by itself, and a factor of it comes out again. ``pools``: the same, over
all places of an image, which are one afterwards. ``flattens``: it moves values, which keeps
channels apart where there is one place alone. Empty: it ends the stream.
"""


@dataclass
class _Stream:
    """Attributes: see :class:`Group`. ``rows`` are the values that have their channels last."""

    writers: list[Op] = field(default_factory=list)
    readers: list[Op] = field(default_factory=list)
    values: dict[str, None] = field(default_factory=dict)
    ends: dict[str, None] = field(default_factory=dict)
    rows: set[str] = field(default_factory=set)


def channel_streams(
    ops: Sequence[Op], outputs: Collection[str], role: Callable[[Op], Role]
) -> tuple[Group, ...]:
    """Return a ``rescale`` group for each stream whose writers and readers can all take factors.

    Args:
        ops: The model, in execution order, as ``describe()`` lists it. A fused ReLU is named
            ``relu`` in the attribute ``activation``; anything else there ends a stream.
        outputs: The model's: they stay as they are.
        role: What the backend's other ops do.
    """
    finder = _Finder(ops, outputs, role)
    found: list[Group] = []
    taken: set[str] = set()
    for op in ops:
        if op.name in taken or not finder.writes(op):
            continue
        stream = finder.follow(op)
        if stream is None or not stream.readers:
            continue
        taken.update(writer.name for writer in stream.writers)
        members = dict.fromkeys(reader.name for reader in stream.readers)
        found.append(
            Group(
                f"rescale:{op.name}",
                "rescale",
                tuple(members),
                op.name,
                _written(op),
                next(iter(stream.ends)),
                tuple(stream.values),
                takes=SCALE_ALONE,
                rectified=len(stream.writers) == 1 and bool(_activation(op)),
            )
        )
    return tuple(found)


class _Finder:
    def __init__(
        self, ops: Sequence[Op], outputs: Collection[str], role: Callable[[Op], Role]
    ) -> None:
        self._outputs = frozenset(outputs)
        self._role = role
        self._producers = {value: op for op in ops for value in op.outputs}
        self._readers: dict[str, list[Op]] = {}
        for op in ops:
            for value in dict.fromkeys(op.inputs):
                self._readers.setdefault(value, []).append(op)
        self._biases = Counter(op.bias for op in ops if op.bias)

    def writes(self, op: Op) -> bool:
        """True if an op's output channels can be divided."""
        return self.reads(op) and _activation(op) in ("", "relu")

    def reads(self, op: Op) -> bool:
        """True if an op's weight can take factors, and nobody else has it."""
        if op.type not in ("conv", "linear") or op.weight is None or op.out_of_reach:
            return False
        is_alone = not op.bias or self._biases[op.bias] == 1
        return is_alone and not op.weight.shared_with and len(op.inputs) == 1

    def follow(self, writer: Op) -> _Stream | None:
        """Follow values both ways; None where an op cannot take part."""
        stream = _Stream()
        pending = [writer.outputs[0]]
        while pending:
            value = pending.pop()
            if value in stream.values:
                continue
            stream.values[value] = None
            before = self._before(value, stream)
            after = self._after(value, stream)
            if before is None or after is None or value in self._outputs:
                return None
            pending += before
            pending += after
        widths = {_written(op) for op in stream.writers}
        widths.update(_read(op) for op in stream.readers)
        fits = all(self._fits(op, stream) for op in stream.readers)
        return stream if len(widths) == 1 and fits else None

    def _fits(self, reader: Op, stream: _Stream) -> bool:
        """True if a reader finds its channels where it looks for them."""
        return (reader.type == "linear") == (reader.inputs[0] in stream.rows)

    def _before(self, value: str, stream: _Stream) -> list[str] | None:
        """Return the values that a value is made of; None where it cannot be followed."""
        op = self._producers.get(value)
        if op is None or len(op.outputs) != 1:
            return None
        if self.writes(op):
            stream.writers.append(op)
            if op.type == "linear":
                stream.rows.add(value)
            return []
        if _is_sum(op):
            return list(op.inputs)
        return [op.inputs[0]] if self._passes(op, stream) else None

    def _after(self, value: str, stream: _Stream) -> list[str] | None:
        """Return the values that are made of a value; None where a reader cannot take part."""
        further: list[str] = []
        for op in self._readers.get(value, ()):
            if self.reads(op):
                stream.readers.append(op)
                stream.ends[value] = None
            elif _is_sum(op) or self._passes(op, stream):
                further.append(op.outputs[0])
                if value in stream.rows:
                    stream.rows.add(op.outputs[0])
            else:
                return None
        return further

    def _passes(self, op: Op, stream: _Stream) -> bool:
        role = self._role(op) if op.inputs and len(op.outputs) == 1 else ""
        is_row = op.inputs[:1] and op.inputs[0] in stream.rows
        if role == "pools":
            stream.rows.update(op.outputs)
        return bool(role) and (role != "flattens" or bool(is_row))


def _is_sum(op: Op) -> bool:
    """True for a sum of two values, of which neither is a constant."""
    return (
        op.type == "add"
        and len(set(op.inputs)) == 2
        and _activation(op) in ("", "relu")
    )


def _activation(op: Op) -> str:
    return str(op.attributes.get("activation", ""))


def _groups(op: Op) -> int:
    return int(op.attributes.get("groups", 1))  # type: ignore[arg-type]


def _written(op: Op) -> int:
    assert op.weight is not None
    return op.weight.shape[op.weight.channel_axis]


def _read(op: Op) -> int:
    assert op.weight is not None
    if op.type == "linear":
        return op.weight.shape[1 - op.weight.channel_axis]
    return op.weight.shape[1] * _groups(op)


def rescaled_weights(
    ops: Iterable[Op],
    groups: Iterable[Group],
    factors: Mapping[str, Factors],
    tensor: Callable[[str], Array],
) -> dict[str, np.ndarray]:
    """Return the weights and biases that factors change, by name: what ``rescale`` writes.

    Args:
        ops: As :func:`channel_streams` was given them.
        groups: What it returned.
        factors: Name of a group -> factors.
        tensor: Returns a weight or a bias by name.

    Raises:
        SchemeError: If a group is unknown, or cannot take its map.
    """
    changed: dict[str, np.ndarray] = {}

    def now(name: str) -> np.ndarray:
        return (
            changed[name] if name in changed else np.asarray(tensor(name), np.float32)
        )

    kept = tuple(ops)
    by_name = {op.name: op for op in kept}
    for group, change in channel_maps(groups, factors):
        scale = np.asarray(change.scale, np.float32)
        divided = {*group.values, group.value}
        for op in kept:
            if op.weight is None or divided.isdisjoint(op.outputs):
                continue
            weight = now(op.weight.name)
            shape = [1] * weight.ndim
            shape[op.weight.channel_axis] = -1
            changed[op.weight.name] = weight / scale.reshape(shape)
            if op.bias:
                changed[op.bias] = now(op.bias) / scale
        for op in (by_name[name] for name in group.members):
            assert op.weight is not None
            weight = now(op.weight.name)
            if op.type == "conv":
                read = np.asarray(change.grouped_reader(weight, _groups(op)))
            else:
                read = weight * (
                    scale if op.weight.channel_axis == 0 else scale[:, None]
                )
            changed[op.weight.name] = read
    return changed
