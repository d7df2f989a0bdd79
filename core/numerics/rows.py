"""An op's input as the rows of the matrix that its weight multiplies: y = rows @ W.T."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

from array_api_compat import array_namespace, device

from octavo.core.errors import SchemeError
from octavo.core.values.graph import Op

Array = Any

Axes = tuple[int, ...]
"""One number for each spatial axis."""

_CHUNK = 2**24
"""Largest number of elements of one unfolded chunk (64 MiB in float32)."""


@dataclass(frozen=True, slots=True)
class Rows:
    """How an op reads its input.

    A linear op reads the last axis; a convolution the patches under its kernel.

    Attributes:
        kernel: Spatial kernel shape; () for a linear op.
        strides: One per spatial axis.
        pads: Zeros before each spatial axis, then after each.
        dilations: One per spatial axis.
        groups: Groups of input channels, each with rows of its own.
        stuffing: How far the input's neighbours are moved apart, zeros between them, before
            anything else: a transposed convolution is a plain one over such an input, with its
            kernel turned round. () for all others.
    """

    kernel: Axes = ()
    strides: Axes = ()
    pads: Axes = ()
    dilations: Axes = ()
    groups: int = 1
    stuffing: Axes = ()

    @property
    def channel_axis(self) -> int:
        """Axis of the input's channels."""
        return 1 if self.kernel else -1

    def features_of(self, channels: Array) -> Array:
        """Spread one number per input channel over the features.

        Args:
            channels: Shape (channels,).

        Returns:
            Shape (groups, features).
        """
        xp = array_namespace(channels)
        positions = prod(self.kernel)
        spread = xp.repeat(channels, positions)
        return xp.reshape(spread, (self.groups, -1))

    def chunks(self, x: Array) -> Iterator[Array]:
        """Yield float32 arrays (groups, rows, features).

        Features are in the order of the flattened weight. A convolution is unfolded a few samples
        at a time, so that memory stays bounded whatever the batch.
        """
        xp = array_namespace(x)
        if 0 in x.shape:
            return
        if not self.kernel:
            values = xp.astype(x, xp.float32)
            yield xp.reshape(values, (1, -1, x.shape[-1]))
            return
        count = x.shape[0]
        step = self._samples_of_chunk(x.shape[1:])
        for start in range(0, count, step):
            samples = xp.astype(x[start : start + step, ...], xp.float32)
            yield self._unfold(samples)

    def _samples_of_chunk(self, sample: Sequence[int]) -> int:
        """Return how many samples of a shape are unfolded at once."""
        unfolded = prod(sample) * prod(self.kernel) * prod(self.stuffing)
        return max(1, _CHUNK // max(1, unfolded))

    def _unfold(self, x: Array) -> Array:
        """Return the patches under the kernel, shape (groups, rows, features)."""
        xp = array_namespace(x)
        samples, channels = x.shape[:2]
        if self.stuffing:
            x = self._stuffed(x)
        x = self._padded(x)
        sizes = self._places(x.shape[2:])
        places = prod(sizes)
        shape = (samples, self.groups, channels // self.groups, places)
        positions = product(*map(range, self.kernel))
        views = []
        for at in positions:
            met = x[self._window(at, sizes)]
            views.append(xp.reshape(met, shape))
        # (samples, groups, channels, kernel positions, places)
        patches = xp.stack(views, axis=3)
        patches = xp.permute_dims(patches, (1, 0, 4, 2, 3))
        return xp.reshape(patches, (self.groups, samples * places, -1))

    def _places(self, shape: Sequence[int]) -> Axes:
        """Return in how many places along each spatial axis the kernel stands."""
        reach = _reach(self.kernel, self.dilations)
        places = []
        for size, far, stride in zip(shape, reach, self.strides, strict=True):
            last_start = size - far - 1
            places.append(last_start // stride + 1)
        return tuple(places)

    def _window(
        self, offsets: Sequence[int], sizes: Sequence[int]
    ) -> tuple[slice, ...]:
        """Return what one position of the kernel meets in all places, as an index."""
        if self.stuffing:
            # The kernel of a transposed convolution is turned round.
            ends = zip(self.kernel, offsets, strict=True)
            offsets = [size - 1 - offset for size, offset in ends]
        window = []
        along = zip(offsets, self.dilations, self.strides, sizes, strict=True)
        for offset, dilation, stride, size in along:
            start = offset * dilation
            last = start + (size - 1) * stride
            window.append(slice(start, last + 1, stride))
        return (slice(None), slice(None), *window)

    def _padded(self, x: Array) -> Array:
        axes = len(self.kernel)
        ends = zip(self.pads[:axes], self.pads[axes:], strict=True)
        for axis, (before, after) in enumerate(ends, start=2):
            # A transposed convolution's padding takes values away.
            x = _cropped(x, axis, max(0, -before), max(0, -after))
            x = _with_zeros(x, axis, max(0, before), max(0, after))
        return x

    def _stuffed(self, x: Array) -> Array:
        xp = array_namespace(x)
        apart = self.stuffing
        shape = list(x.shape)
        places = [slice(None), slice(None)]
        for axis, far in enumerate(apart, start=2):
            shape[axis] = (shape[axis] - 1) * far + 1
            places.append(slice(None, None, far))
        wide = xp.zeros(tuple(shape), dtype=x.dtype, device=device(x))
        wide[tuple(places)] = x
        return wide


def _cropped(x: Array, axis: int, before: int, after: int) -> Array:
    if not before and not after:
        return x
    whole = [slice(None)] * axis
    kept = slice(before, x.shape[axis] - after)
    return x[(*whole, kept)]


def _with_zeros(x: Array, axis: int, before: int, after: int) -> Array:
    if not before and not after:
        return x
    xp = array_namespace(x)
    shape = list(x.shape)
    ends = []
    for width in (before, after):
        shape[axis] = width
        zeros = xp.zeros(tuple(shape), dtype=x.dtype, device=device(x))
        ends.append(zeros)
    return xp.concat([ends[0], x, ends[1]], axis=axis)


def rows_of(op: Op) -> Rows | None:
    """Return how ``op`` reads its first input.

    None if its weight multiplies no rows that can be observed.

    Raises:
        SchemeError: If a convolution's attributes do not fit its kernel.
    """
    if op.weight is None:
        return None
    if op.type == "linear":
        return Rows()
    if op.type != "conv":
        return None
    kernel = op.weight.shape[2:]
    axes = len(kernel)
    return Rows(
        kernel,
        strides=_ints(op, "strides", axes, 1),
        pads=_ints(op, "pads", 2 * axes, 0),
        dilations=_ints(op, "dilations", axes, 1),
        groups=_groups(op),
    )


def rounding_rows(op: Op) -> Rows | None:
    """Return the rows that errors of ``op``'s weight multiply.

    Those of :func:`rows_of`, and a transposed convolution's too. The latter hold zeros between the
    input's values, so channels may not be rescaled by what they show; but the output error of a
    rounded weight is exact. Rows that only ``output_padding`` adds are left out.
    """
    if op.type != "conv_transpose" or op.weight is None:
        return rows_of(op)
    kernel = op.weight.shape[2:]
    axes = len(kernel)
    dilations = _ints(op, "dilations", axes, 1)
    cut = _ints(op, "pads", 2 * axes, 0)
    # A plain convolution with what the kernel reaches beyond the ends, less what is cut there.
    reach = _reach(kernel, dilations)
    both_ends = reach + reach
    pads = tuple(far - less for far, less in zip(both_ends, cut, strict=True))
    return Rows(
        kernel,
        strides=(1,) * axes,
        pads=pads,
        dilations=dilations,
        groups=_groups(op),
        stuffing=_ints(op, "strides", axes, 1),
    )


def _reach(kernel: Sequence[int], dilations: Sequence[int]) -> list[int]:
    """Return how far the kernel's last position lies from its first, along each axis."""
    along = zip(kernel, dilations, strict=True)
    return [dilation * (size - 1) for size, dilation in along]


def _groups(op: Op) -> int:
    groups = op.attributes.get("groups", 1)
    if isinstance(groups, tuple):
        return 1
    return int(groups)


def _ints(op: Op, name: str, count: int, default: int) -> Axes:
    given = op.attributes.get(name, default)
    numbers = given if isinstance(given, tuple) else (int(given),) * count
    if len(numbers) != count:
        shape = op.weight.shape if op.weight else ()
        raise SchemeError(
            f"op {op.name!r} states {name} {numbers}; "
            f"a kernel of shape {shape} needs {count} numbers"
        )
    return numbers
