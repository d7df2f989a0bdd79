"""A function-preserving change of a value's channels: what a rescale group carries."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from array_api_compat import array_namespace

from octavo.core.errors import SchemeError, nearest
from octavo.core.values.graph import Group

from .affine import Array
from .hadamard import hadamard_parts, rotate

Carried = Literal["scale", "shift", "rotation"]
RESCALE_FEATURES: Mapping[str, str] = {
    "scale": "rescale",
    "shift": "rescale:shift",
    "rotation": "rescale:rotation",
}
"""What a channel map may carry, and the capability feature that stands for it."""

EVERY: frozenset[str] = frozenset(RESCALE_FEATURES)
"""All that a channel map may carry."""

SCALE_ALONE: frozenset[str] = frozenset({"scale"})
"""What passes convolutions over zero padding, and ops that work channel by channel."""


@dataclass(frozen=True, slots=True, eq=False)
class ChannelMap:
    """x' = R((x - shift) / scale): members' weights become (W * scale) R, biases b + W shift.

    R is a Hadamard rotation, x' W'^T = ((x - shift) / scale) R R^T (W * scale)^T, so that the
    function stays. Outlier Suppression+ shifts and scales (Wei et al. 2023, eq. 4), QuaRot rotates
    (Ashkboos et al. 2024, section 3).

    Attributes:
        scale: float32 > 0, shape (channels,); None for ones.
        shift: float32, shape (channels,); None for zeros.
        rotation: Seed of :func:`~octavo.core.numerics.hadamard.hadamard`; None for no rotation.
    """

    scale: Array | None = None
    shift: Array | None = None
    rotation: int | None = None

    @property
    def carries(self) -> frozenset[str]:
        """What is changed: of ``scale``, ``shift``, ``rotation``."""
        return frozenset(
            name for name in RESCALE_FEATURES if getattr(self, name) is not None
        )

    def apply(self, x: Array, axis: int = -1) -> Array:
        """Return the value x' of x, float32, same shape.

        Channels lie along ``axis``; a rotation needs them last.
        """
        xp = array_namespace(x)
        ones = [1] * x.ndim
        ones[axis] = -1
        shape = tuple(ones)
        y = xp.astype(x, xp.float32)
        if self.shift is not None:
            y = y - xp.reshape(self.shift, shape)
        if self.scale is not None:
            y = y / xp.reshape(self.scale, shape)
        return self._rotated(y)

    def _rotated(self, x: Array) -> Array:
        return x if self.rotation is None else rotate(x, self.rotation)

    def reader(self, weight: Array) -> Array:
        """Return the weight that reads x', float32; ``weight`` has shape (outputs, channels)."""
        xp = array_namespace(weight)
        scaled = xp.astype(weight, xp.float32)
        if self.scale is not None:
            scaled = scaled * self.scale
        return self._rotated(scaled)

    def reader_bias(self, weight: Array, bias: Array | None) -> Array | None:
        """Return b + W shift, float32, shape (outputs,); None where there is none still.

        Args:
            weight: Shape (outputs, channels).
            bias: Shape (outputs,), or None.
        """
        if self.shift is None:
            return bias
        xp = array_namespace(weight)
        moved = xp.matmul(xp.astype(weight, xp.float32), self.shift)
        if bias is None:
            return moved
        return xp.astype(bias, xp.float32) + moved

    def grouped_reader(self, weight: Array, groups: int) -> Array:
        """Return the weight of a convolution that reads x', float32; only scales are taken in.

        Group g reads the g-th part of the channels, and output o belongs to group
        o // (outputs / groups).

        Args:
            weight: Shape (outputs, channels / groups, *kernel).
            groups: Number of groups.
        """
        assert self.scale is not None and self.carries == {"scale"}
        xp = array_namespace(weight)
        outputs = weight.shape[0]
        by_group = xp.reshape(self.scale, (groups, -1))
        by_output = xp.repeat(by_group, outputs // groups, axis=0)
        kernel_axes = (1,) * (weight.ndim - 2)
        factors = xp.reshape(by_output, (outputs, -1, *kernel_axes))
        return xp.astype(weight, xp.float32) * factors

    def writer(self, weight: Array, bias: Array | None) -> tuple[Array, Array | None]:
        """Return the weight and bias of a linear op that writes x' in place of x, float32.

        Args:
            weight: Shape (channels, features).
            bias: Shape (channels,), or None.
        """
        xp = array_namespace(weight)
        # A weight's outputs are differences of values: the shift is the bias's alone.
        without_shift = replace(self, shift=None)
        outputs_last = xp.matrix_transpose(weight)
        changed = without_shift.apply(outputs_last)
        turned = xp.matrix_transpose(changed)
        if bias is None and self.shift is not None:
            bias = xp.zeros_like(self.shift)
        if bias is None:
            return turned, None
        return turned, self.apply(bias)

    def steps(self, channels: int, like: Array) -> Steps:
        """Return what a runtime does to a value to change its channels.

        Args:
            channels: How many there are.
            like: An array in whose namespace the steps are made.
        """
        factor = None if self.scale is None else 1 / self.scale
        if self.rotation is None:
            return Steps(self.shift, factor)
        signs, left, right = hadamard_parts(channels, like, self.rotation)
        return Steps(self.shift, _product(signs, factor), left, right)

    def then(self, after: ChannelMap) -> tuple[ChannelMap, ...]:
        """Return this map and ``after``, as one where one can hold both.

        A rotation lets nothing but itself come last.
        """
        if self.rotation is not None:
            return (self, after)
        scale = _product(self.scale, after.scale)
        # (x - s) / f then - t is x - (s + t f), all of it divided by f.
        later = None
        if after.shift is not None:
            later = _product(after.shift, self.scale)
        shift = _total(self.shift, later)
        return (ChannelMap(scale, shift, after.rotation),)


def _product(a: Array | None, b: Array | None) -> Array | None:
    """Return a * b, where None stands for ones."""
    if a is None:
        return b
    if b is None:
        return a
    return a * b


def _total(a: Array | None, b: Array | None) -> Array | None:
    """Return a + b, where None stands for zeros."""
    if a is None:
        return b
    if b is None:
        return a
    return a + b


@dataclass(frozen=True, slots=True, eq=False)
class Steps:
    """A channel map as operations that every runtime has.

    y = (x - shift) * factor; then, for a rotation, the flattened left Y right.

    Attributes:
        shift: Subtracted first, float32, shape (channels,); None where nothing is.
        factor: Multiplied next, likewise.
        left: float32, shape (a, a), for Y = reshape(y, (a, b)); None where nothing is rotated.
        right: float32, shape (b, b).
    """

    shift: Array | None = None
    factor: Array | None = None
    left: Array | None = None
    right: Array | None = None


Factors = Array | ChannelMap
"""Scales alone, as float32 > 0 of shape (channels,); or a :class:`ChannelMap`."""


def as_map(factors: Factors) -> ChannelMap:
    """Return factors as a map; an array is the scales."""
    return factors if isinstance(factors, ChannelMap) else ChannelMap(scale=factors)


Change = tuple[tuple[ChannelMap, ...], int]
"""(What was done to a value's channels, in order; their axis.)"""

Changes = Mapping[str, Change]
"""Value -> its change."""


def chained(maps: Iterable[ChannelMap]) -> tuple[ChannelMap, ...]:
    """Return maps that follow each other as few as can be."""
    found: tuple[ChannelMap, ...] = ()
    for one in maps:
        if not found:
            found = (one,)
            continue
        *before, last = found
        found = (*before, *last.then(one))
    return found


def channel_maps(
    groups: Iterable[Group], factors: Mapping[str, Any]
) -> Iterator[tuple[Group, ChannelMap]]:
    """Yield each group with its map in float32; what ``Session.rescale`` begins with.

    Args:
        groups: Of the model.
        factors: Group name -> factors.

    Raises:
        SchemeError: If a group is unknown, cannot take what a map carries, or a map does not fit
            its channels.
    """
    known = {g.name: g for g in groups if g.kind == "rescale"}
    for name, given in factors.items():
        if name not in known:
            hint = nearest(name, known)
            raise SchemeError(f"there is no rescale group {name!r}{hint}")
        group = known[name]
        yield group, _checked_map(group, as_map(given))


def _checked_map(group: Group, change: ChannelMap) -> ChannelMap:
    beyond = sorted(change.carries - group.takes)
    if beyond:
        taken = ", ".join(sorted(group.takes))
        refused = ", ".join(beyond)
        raise SchemeError(
            f"group {group.name!r} takes {taken} and no {refused}; leave it out there"
        )
    scale = change.scale
    shift = change.shift
    if scale is not None:
        scale = _checked(group, "positive factors", scale, positive=True)
    if shift is not None:
        shift = _checked(group, "shifts", shift)
    return ChannelMap(scale, shift, change.rotation)


def _checked(group: Group, kind: str, array: Array, *, positive: bool = False) -> Array:
    xp = array_namespace(array)
    shape = tuple(array.shape)
    fits = shape == (group.channels,) and bool(xp.all(xp.isfinite(array)))
    least = float(xp.min(array)) if fits else math.nan
    if not fits or (positive and least <= 0):
        raise SchemeError(
            f"group {group.name!r} takes {group.channels} finite {kind}, got shape {shape}, "
            f"smallest {least:g}"
        )
    return xp.astype(array, xp.float32)


def norm_steps(*, has_shift: bool) -> frozenset[str]:
    """Return what a norm cannot take into its own parameters.

    It is a step of its own after the norm.

    Args:
        has_shift: It adds a shift of its own, which takes in another one.
    """
    if has_shift:
        return frozenset({"rotation"})
    return frozenset({"shift", "rotation"})


def is_online(group: Group, change: ChannelMap, *, already: bool) -> bool:
    """True if members apply the map to what they read, step by step at run time.

    No producer then writes the value changed.

    Args:
        group: The group.
        change: Its map.
        already: Members apply an earlier map so; what comes after it must follow it there.
    """
    if already or not group.producer:
        return True
    return bool(change.carries & group.online)
