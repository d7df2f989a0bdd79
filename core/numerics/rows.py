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

    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    groups: int = 1
    stuffing: tuple[int, ...] = ()

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
        return xp.reshape(xp.repeat(channels, prod(self.kernel)), (self.groups, -1))

    def chunks(self, x: Array) -> Iterator[Array]:
        """Yield float32 arrays (groups, rows, features).

        Features are in the order of the flattened weight. A convolution is unfolded a few samples
        at a time, so that memory stays bounded whatever the batch.
        """
        xp = array_namespace(x)
        if 0 in x.shape:
            return
        if not self.kernel:
            yield xp.reshape(xp.astype(x, xp.float32), (1, -1, x.shape[-1]))
            return
        count, channels, *sizes = x.shape
        unfolded = channels * prod(self.kernel) * prod(sizes) * prod(self.stuffing)
        step = max(1, _CHUNK // max(1, unfolded))
        for start in range(0, count, step):
            samples = xp.astype(x[start : start + step, ...], xp.float32)
            yield self._unfold(samples)

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
        positions = product(*(range(k) for k in self.kernel))
        views = [xp.reshape(x[self._window(at, sizes)], shape) for at in positions]
        # (samples, groups, channels, kernel positions, places)
        patches = xp.stack(views, axis=3)
        patches = xp.permute_dims(patches, (1, 0, 4, 2, 3))
        return xp.reshape(patches, (self.groups, samples * places, -1))

    def _places(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return in how many places along each spatial axis the kernel stands."""
        reach = _reach(self.kernel, self.dilations)
        along = zip(shape, reach, self.strides, strict=True)
        return tuple((size - far - 1) // stride + 1 for size, far, stride in along)

    def _window(
        self, offsets: Sequence[int], sizes: Sequence[int]
    ) -> tuple[slice, ...]:
        """Return what one position of the kernel meets in all places, as an index."""
        if self.stuffing:
            # The kernel of a transposed convolution is turned round.
            offsets = [
                k - 1 - offset for offset, k in zip(offsets, self.kernel, strict=True)
            ]
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
        sizes = [
            (size - 1) * far + 1 for size, far in zip(x.shape[2:], apart, strict=True)
        ]
        wide = xp.zeros((*x.shape[:2], *sizes), dtype=x.dtype, device=device(x))
        places = (slice(None, None, far) for far in apart)
        wide[(slice(None), slice(None), *places)] = x
        return wide


def _cropped(x: Array, axis: int, before: int, after: int) -> Array:
    if not before and not after:
        return x
    whole = [slice(None)] * axis
    return x[(*whole, slice(before, x.shape[axis] - after))]


def _with_zeros(x: Array, axis: int, before: int, after: int) -> Array:
    if not before and not after:
        return x
    xp = array_namespace(x)
    ends = []
    for width in (before, after):
        shape = (*x.shape[:axis], width, *x.shape[axis + 1 :])
        ends.append(xp.zeros(shape, dtype=x.dtype, device=device(x)))
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
    pads = tuple(far - less for far, less in zip(reach * 2, cut, strict=True))
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
    return [dilation * (k - 1) for k, dilation in zip(kernel, dilations, strict=True)]


def _groups(op: Op) -> int:
    groups = op.attributes.get("groups", 1)
    return 1 if isinstance(groups, tuple) else int(groups)


def _ints(op: Op, name: str, count: int, default: int) -> tuple[int, ...]:
    given = op.attributes.get(name, default)
    numbers = given if isinstance(given, tuple) else (int(given),) * count
    if len(numbers) != count:
        shape = op.weight.shape if op.weight else ()
        raise SchemeError(
            f"op {op.name!r} states {name} {numbers}; "
            f"a kernel of shape {shape} needs {count} numbers"
        )
    return numbers
