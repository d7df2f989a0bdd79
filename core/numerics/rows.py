"""An op's input as the rows of the matrix that its weight multiplies: y = rows @ W.T."""

from __future__ import annotations

from collections.abc import Iterator
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
    """How an op reads its input. A linear op reads the last axis; a convolution the patches under its kernel.

    Attributes:
        kernel: Spatial kernel shape; () for a linear op.
        strides: One per spatial axis.
        pads: Zeros before each spatial axis, then after each.
        dilations: One per spatial axis.
        groups: Groups of input channels, each with rows of its own.
        stuffing: How far the input's neighbours are moved apart, zeros between them, before anything else: a transposed
            convolution is a plain one over such an input, with its kernel turned round. () for all others.
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
        """Spread one number per input channel over the features: (channels,) -> (groups, features)."""
        xp = array_namespace(channels)
        return xp.reshape(xp.repeat(channels, prod(self.kernel)), (self.groups, -1))

    def chunks(self, x: Array) -> Iterator[Array]:
        """Yield float32 arrays (groups, rows, features); features are in the order of the flattened weight.

        A convolution is unfolded a few samples at a time, so that memory stays bounded whatever the batch.
        """
        xp = array_namespace(x)
        if 0 in x.shape:
            return
        if not self.kernel:
            yield xp.reshape(xp.astype(x, xp.float32), (1, -1, x.shape[-1]))
            return
        grown = x.shape[1] * prod(self.kernel) * prod(x.shape[2:]) * prod(self.stuffing)
        step = max(1, _CHUNK // max(1, grown))
        for start in range(0, x.shape[0], step):
            yield self._unfold(xp.astype(x[start : start + step, ...], xp.float32))

    def _unfold(self, x: Array) -> Array:
        xp = array_namespace(x)
        n = len(self.kernel)
        samples, channels = x.shape[0], x.shape[1]
        if self.stuffing:
            x = self._stuffed(x)
        for i in range(n):
            before, after = self.pads[i], self.pads[n + i]
            if before < 0 or after < 0:
                x = x[
                    (
                        *[slice(None)] * (2 + i),
                        slice(max(0, -before), x.shape[2 + i] - max(0, -after)),
                    )
                ]
                before, after = max(0, before), max(0, after)
            if before or after:
                shape = list(x.shape)
                ends = []
                for width in (before, after):
                    shape[2 + i] = width
                    ends.append(xp.zeros(tuple(shape), dtype=x.dtype, device=device(x)))
                x = xp.concat([ends[0], x, ends[1]], axis=2 + i)
        reach = [d * (k - 1) for d, k in zip(self.dilations, self.kernel, strict=True)]
        sizes = [(x.shape[2 + i] - reach[i] - 1) // self.strides[i] + 1 for i in range(n)]
        views = []
        for offsets in product(*(range(k) for k in self.kernel)):
            if self.stuffing:
                offsets = tuple(k - 1 - o for o, k in zip(offsets, self.kernel, strict=True))
            starts = [o * d for o, d in zip(offsets, self.dilations, strict=True)]
            window = [
                slice(b, b + (size - 1) * s + 1, s)
                for b, s, size in zip(starts, self.strides, sizes, strict=True)
            ]
            view = x[(slice(None), slice(None), *window)]
            views.append(
                xp.reshape(view, (samples, self.groups, channels // self.groups, prod(sizes)))
            )
        patches = xp.stack(views, axis=3)  # (samples, groups, channels, kernel positions, places)
        return xp.reshape(
            xp.permute_dims(patches, (1, 0, 4, 2, 3)), (self.groups, samples * prod(sizes), -1)
        )

    def _stuffed(self, x: Array) -> Array:
        xp = array_namespace(x)
        sizes = [
            (size - 1) * apart + 1 for size, apart in zip(x.shape[2:], self.stuffing, strict=True)
        ]
        wide = xp.zeros((*x.shape[:2], *sizes), dtype=x.dtype, device=device(x))
        wide[(slice(None), slice(None), *(slice(None, None, apart) for apart in self.stuffing))] = x
        return wide


def rows_of(op: Op) -> Rows | None:
    """Return how ``op`` reads its first input, or None if its weight multiplies no rows that can be observed.

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
    n = len(kernel)
    strides, dilations = _ints(op, "strides", n, 1), _ints(op, "dilations", n, 1)
    groups = op.attributes.get("groups", 1)
    return Rows(
        kernel,
        strides,
        _ints(op, "pads", 2 * n, 0),
        dilations,
        int(groups) if not isinstance(groups, tuple) else 1,
    )


def rounding_rows(op: Op) -> Rows | None:
    """Return the rows that errors of ``op``'s weight multiply: those of :func:`rows_of`, and a transposed convolution's too.

    The latter hold zeros between the input's values, so channels may not be rescaled by what they show; but the output error of a
    rounded weight is exact. Rows that only ``output_padding`` adds are left out.
    """
    if op.type != "conv_transpose" or op.weight is None:
        return rows_of(op)
    kernel = op.weight.shape[2:]
    n = len(kernel)
    dilations, pads = _ints(op, "dilations", n, 1), _ints(op, "pads", 2 * n, 0)
    reach = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
    groups = op.attributes.get("groups", 1)
    return Rows(
        kernel,
        (1,) * n,
        tuple(r - p for r, p in zip(reach * 2, pads, strict=True)),
        dilations,
        int(groups) if not isinstance(groups, tuple) else 1,
        _ints(op, "strides", n, 1),
    )


def _ints(op: Op, name: str, count: int, default: int) -> tuple[int, ...]:
    given = op.attributes.get(name, default)
    numbers = given if isinstance(given, tuple) else (int(given),) * count
    if len(numbers) != count:
        raise SchemeError(
            f"op {op.name!r} states {name} {numbers}; a kernel of shape {op.weight.shape if op.weight else ()} needs {count} numbers"
        )
    return numbers
