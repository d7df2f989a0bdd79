"""A model as octavo sees it: operations, the values between them, and groups that
belong together."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from math import prod
from types import MappingProxyType
from typing import Any, Literal

from octavo.core.errors import ModelError, nearest

from .json_form import canonical_json
from .takes import Reads

# The neutral vocabulary. An adapter maps its framework's operations onto these; what does not fit
# keeps its own lower-case name and is float unless the adapter's capability offers a scheme for
# that name.
OP_TYPES = (
    "linear", "conv", "conv_transpose", "matmul", "embedding", "lstm", "gru", "attention",
    "add", "mul", "concat", "relu", "gelu", "silu", "sigmoid", "tanh", "softmax",
    "max_pool", "avg_pool", "batch_norm", "layer_norm", "rms_norm", "reshape", "resize",
)  # fmt: skip

UNREACHED = "calibration never reached it"
"""Why an op stays float that no calibration batch came by: a branch that was not taken, or nothing
calls it."""

Attribute = int | float | str | bool | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Weight:
    """The weight of an op, by name; ``Session.tensor(name)`` gives the array.

    Attributes:
        name: The tensor's name in the model.
        shape: Its shape.
        dtype: Its stored dtype, by NumPy's name (``bfloat16`` included).
        channel_axis: Axis of the output channels, along which ``channel`` granularity has one scale
            each.
        shared_with: Names of other ops that use the same tensor (tied weights, a module called
            twice).
        made_of: Names of the model's tensors that it is computed from, where it is none of them
            itself (a transposed copy, a normalised weight): what coverage counts in its place.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    channel_axis: int = 0
    shared_with: tuple[str, ...] = ()
    made_of: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class HeldWeight:
    """A tensor of the model that its forward uses, whoever reads it.

    Attributes:
        name: The tensor's name in the model.
        shape: Its shape.
        dtype: Its stored dtype, by NumPy's name.
        reason: Why no op claims it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Op:
    """One operation.

    Attributes:
        name: Unique in its model; what rules and recipes refer to.
        type: In the neutral vocabulary :data:`OP_TYPES`.
        inputs: Names of the activation values it reads; two ops that read one value name it alike.
        outputs: Names of the values it writes, after whatever was fused into it (batch norm, ReLU).
        weight: Its weight, if it has one.
        bias: Name of its bias tensor, or None.
        macs: Multiply-accumulates for one sample, or None where shapes are unknown.
        attributes: Strides, groups, fused activation and the like. A convolution states
            ``strides``, ``pads`` (all begins, then all ends, as ONNX has them), ``dilations`` and
            ``groups``; what is left out is 1, 0, 1 and 1.
        out_of_reach: Why it must stay float here; empty when a scheme may be chosen.
        further: Weights beside the first (a recurrent layer has two for each layer and direction);
            its scheme quantizes all.
    """

    name: str
    type: str
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    weight: Weight | None = None
    bias: str | None = None
    macs: int | None = None
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    out_of_reach: str = ""
    further: tuple[Weight, ...] = ()

    @property
    def weights(self) -> tuple[Weight, ...]:
        """All its weights, the first one first."""
        return (self.weight, *self.further) if self.weight else ()

    @property
    def parameters(self) -> int:
        """Number of weight elements (bias left out)."""
        return sum(w.size for w in self.weights)


@dataclass(frozen=True, slots=True)
class Group:
    """Ops that belong together.

    Attributes:
        name: Unique in its model.
        kind: ``scheme``: members take one decision (q/k/v that a runtime fuses, tied weights).
            ``scale``: the members' inputs share one scale (concat, add).
            ``rescale``: ``producer`` can be divided and the ``members`` multiplied by one factor
            per channel without changing the model's function (norm -> linear, conv -> conv); see
            ``Session.rescale``.
        members: The ops; for ``rescale`` the consumers.
        producer: For ``rescale``: the op (or norm) whose output channels are divided.
        channels: For ``rescale``: how many factors.
        value: For ``rescale``: the name of the value between producer and consumers.
        values: For ``rescale``: every value that is divided, where there are more than lie between
            producer and members (a residual sum divides all its terms); empty where those are all.
        gain: For ``rescale`` after a norm: name of the norm's gain; ``Session.tensor`` gives it.
            Empty where there is none. A batch norm that was folded into the op before it counts:
            its own gain, not the folded weight's.
        shift: Likewise its shift.
        takes: For ``rescale``: what of a :class:`~octavo.core.numerics.channels.ChannelMap` it can
            take. A norm with a shift takes in shifts, a linear producer with nothing between shifts
            and rotations, a convolution over zero padding scales alone.
        online: For ``rescale``: which of them are steps before the members' products at run time,
            because nothing can take them in.
        offset: The gain that the norm multiplies by is one more than what ``gain`` names, as
            Gemma's norms store it.
        rectified: A ReLU lies behind the norm: members meet no value below zero.
    """

    name: str
    kind: Literal["scheme", "scale", "rescale"]
    members: tuple[str, ...]
    producer: str = ""
    channels: int = 0
    value: str = ""
    values: tuple[str, ...] = ()
    gain: str = ""
    shift: str = ""
    takes: frozenset[str] = frozenset({"scale"})
    online: frozenset[str] = frozenset()
    offset: bool = False
    rectified: bool = False


def tied_groups(ops: Iterable[Op], *, by_type: bool = False) -> Iterator[Group]:
    """Yield a group for each weight that several ops use: one decision for all of them.

    Args:
        ops: The ops.
        by_type: Ops of two types decide apart, because the runtime lays their weights out in two
            ways (a language model's embedding and head).
    """
    users: dict[str, list[str]] = {}
    for op in ops:
        if op.weight is None or not op.weight.shared_with:
            continue
        label = f"{op.weight.name}:{op.type}" if by_type else op.weight.name
        users.setdefault(label, []).append(op.name)
    for label, members in users.items():
        if len(members) > 1:
            yield Group(f"tied:{label}", "scheme", tuple(members))


@dataclass(frozen=True, slots=True)
class InputInfo:
    """A model input: name, shape (None where dynamic) and NumPy dtype name."""

    name: str
    shape: tuple[int | None, ...] | None
    dtype: str = "float32"


@dataclass(frozen=True)
class ModelView:
    """A model's operations in execution order, and their groups. Holds no tensor.

    Attributes:
        ops: In execution order.
        groups: See :class:`Group`.
        inputs: The model's inputs, in call order.
        outputs: Names of the model's outputs.
        notes: What was out of reach and why, for the ledger.
        unclaimed: Floating weights of two or more dimensions that the model's forward uses and no
            op claims, each with its reason. A weight that an op claims may stand here too, where
            something else reads it as it is.
        reading: How a loader's batches become calls, where the backend chose that by the example;
            None where each input is one array.
    """

    ops: tuple[Op, ...]
    groups: tuple[Group, ...] = ()
    inputs: tuple[InputInfo, ...] = ()
    outputs: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    unclaimed: tuple[HeldWeight, ...] = ()
    reading: Reads | None = None

    def __post_init__(self) -> None:
        names = [op.name for op in self.ops]
        if len(set(names)) != len(names):
            twice = sorted({n for n in names if names.count(n) > 1})
            raise ModelError(
                f"op names must be unique; used twice: {', '.join(twice[:5])}. The adapter's "
                "describe() must number them."
            )
        known = set(names)
        for group in self.groups:
            for member in group.members:
                if member not in known:
                    raise ModelError(
                        f"group {group.name!r} names op {member!r}{nearest(member, known)}"
                    )

    def __repr__(self) -> str:
        inputs = ", ".join(i.name for i in self.inputs)
        counts = f"{len(self.ops)} ops, {len(self.groups)} groups"
        return f"ModelView({counts}, inputs: {inputs}; {self.parameters:,} weights)"

    def __getstate__(self) -> dict[str, Any]:
        # Without what is derived: read-only views of mappings cannot be pickled.
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @cached_property
    def by_name(self) -> Mapping[str, Op]:
        """Ops by name."""
        return MappingProxyType({op.name: op for op in self.ops})

    @cached_property
    def producers(self) -> Mapping[str, Op]:
        """The op that writes each value."""
        return MappingProxyType({v: op for op in self.ops for v in op.outputs})

    @cached_property
    def edges(self) -> tuple[tuple[str, str], ...]:
        """Pairs (producer, consumer) of op names."""
        found = []
        for op in self.ops:
            for value in op.inputs:
                producer = self.producers.get(value)
                if producer is not None:
                    found.append((producer.name, op.name))
        return tuple(found)

    @cached_property
    def digest(self) -> str:
        """Content digest of the structure (names, types, shapes), 16 hex digits."""
        rows = [_structure(op) for op in self.ops]
        return hashlib.sha256(canonical_json(rows).encode()).hexdigest()[:16]

    @property
    def parameters(self) -> int:
        """Number of weight elements; a shared tensor counts once."""
        sizes = {weight.name: weight.size for op in self.ops for weight in op.weights}
        return sum(sizes.values())


def _structure(op: Op) -> list[object]:
    first_shape = list(op.weight.shape) if op.weight else None
    further_shapes = [list(weight.shape) for weight in op.further]
    return [
        op.name,
        op.type,
        list(op.inputs),
        list(op.outputs),
        first_shape,
        *further_shapes,
    ]
