"""A transposed convolution as ordinary convolutions, one for each phase of its stride.

Output place o reads input place i through tap t where o + padding = i * stride + t * dilation. Places o of one residue modulo the
stride read the same taps, so that each residue is an ordinary convolution of the input with those taps, reversed (Shi et al. 2016,
"Is the deconvolution layer the same as a convolutional layer?", arXiv:1609.07009; Dumoulin and Visin 2016, arXiv:1603.07285,
section 4). No product is computed that is not needed, and nothing is summed outside of the kernel's integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import product
from math import gcd

Geometry = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...], int]
"""Stride, padding, output padding, dilation and groups."""


@dataclass(frozen=True)
class _Residue:
    """One residue of one axis: its taps, and how its outputs lie in those of a convolution that is padded alike at both ends."""

    residue: int
    taps: tuple[int, ...]
    dilation: int
    padding: int
    first: int
    more: int


@dataclass(frozen=True)
class Phase:
    """Outputs of one residue of every axis.

    Attributes:
        residues: Of each axis.
        first: Where they begin among the convolution's outputs, on each axis.
        more: How many they are beyond the input's places, on each axis; may be negative.
        taps: Which they read, in the order of the convolution; no taps on some axis: the outputs are the bias.
    """

    residues: tuple[int, ...]
    first: tuple[int, ...]
    more: tuple[int, ...]
    taps: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Step:
    """Phases that one convolution with stride 1 computes, side by side in its output channels.

    Attributes:
        padding: Of each axis.
        dilation: Of each axis.
        phases: At least one.
    """

    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    phases: tuple[Phase, ...]


@cache
def steps(
    kernel: tuple[int, ...], geometry: Geometry, together: bool = True
) -> tuple[tuple[Step, ...], tuple[Phase, ...]]:
    """Return the convolutions that make up a transposed one, and the phases that no tap reaches.

    Args:
        kernel: Size of the kernel on each axis.
        geometry: Of the transposed convolution.
        together: One convolution computes all phases with as many taps, dilated and padded alike; else one phase each.
    """
    stride, padding, extra, dilation, _ = geometry
    found: dict[tuple[object, ...], list[Phase]] = {}
    forms: dict[tuple[object, ...], tuple[tuple[int, ...], tuple[int, ...]]] = {}
    empty: list[Phase] = []
    axes = [_residues(*each) for each in zip(kernel, stride, padding, extra, dilation, strict=True)]
    for parts in product(*axes):
        residues, first, more = (
            tuple(getattr(p, name) for p in parts) for name in ("residue", "first", "more")
        )
        phase = Phase(residues, first, more, tuple(p.taps for p in parts))
        if all(phase.taps):
            form = tuple(p.padding for p in parts), tuple(p.dilation for p in parts)
            key = (*form, tuple(len(p.taps) for p in parts), () if together else residues)
            forms[key] = form
            found.setdefault(key, []).append(phase)
        else:
            empty.append(phase)
    return tuple(Step(*forms[key], tuple(phases)) for key, phases in found.items()), tuple(empty)


def _residues(kernel: int, stride: int, padding: int, extra: int, dilation: int) -> list[_Residue]:
    apart = gcd(dilation, stride)
    found = []
    for residue in range(stride):
        taps = [t for t in range(kernel) if (t * dilation - residue - padding) % stride == 0]
        # Outputs are (inputs - 1) * stride - 2 * padding + reach + extra; those of this residue, less the inputs:
        more = -(-(dilation * (kernel - 1) + extra + 1 - stride - 2 * padding - residue) // stride)
        if not taps:
            found.append(_Residue(residue, (), 1, 0, 0, more))
            continue
        # The q-th output of this residue reads input q + shift through its first tap, and earlier inputs through later taps.
        shift = (residue + padding - taps[0] * dilation) // stride
        before, after = (len(taps) - 1) * dilation // apart - shift, more + shift
        room = max(before, after, 0)
        found.append(
            _Residue(residue, tuple(reversed(taps)), dilation // apart, room, room - before, more)
        )
    return found


def output_places(
    places: tuple[int, ...], kernel: tuple[int, ...], geometry: Geometry
) -> list[int]:
    """Return the output's size on each spatial axis (torch.nn.ConvTranspose2d, "Shape")."""
    stride, padding, extra, dilation, _ = geometry
    axes = zip(places, kernel, stride, padding, extra, dilation, strict=True)
    return [(n - 1) * s - 2 * p + d * (k - 1) + e + 1 for n, k, s, p, e, d in axes]
