"""A transposed convolution as ordinary convolutions, one for each phase of its stride.

Output place o reads input place i through tap t where o + padding = i * stride + t * dilation.
Places o of one residue modulo the stride read the same taps, so that each residue is an ordinary
convolution of the input with those taps, reversed (Shi et al. 2016, "Is the deconvolution layer the
same as a convolutional layer?", arXiv:1609.07009; Dumoulin and Visin 2016, arXiv:1603.07285,
section 4). No product is computed that is not needed, and nothing is summed outside of the kernel's
integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import product
from math import gcd

Axes = tuple[int, ...]
"""A number for each axis."""
Geometry = tuple[Axes, Axes, Axes, Axes, int]
"""Stride, padding, output padding, dilation and groups."""


@dataclass(frozen=True)
class _Residue:
    """One residue of one axis.

    Its taps, and how its outputs lie in those of a convolution that is padded alike at both ends.
    """

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
        taps: Which they read, in the order of the convolution; no taps on some axis: the outputs
            are the bias.
    """

    residues: Axes
    first: Axes
    more: Axes
    taps: tuple[Axes, ...]


@dataclass(frozen=True)
class Step:
    """Phases that one convolution with stride 1 computes, side by side in its output channels.

    Attributes:
        padding: Of each axis.
        dilation: Of each axis.
        phases: At least one.
    """

    padding: Axes
    dilation: Axes
    phases: tuple[Phase, ...]


@dataclass(frozen=True)
class _Likeness:
    """What phases have in common that one convolution computes."""

    padding: Axes
    dilation: Axes
    taps: Axes
    alone: Axes


_Plan = tuple[tuple[Step, ...], tuple[Phase, ...]]


@cache
def steps(kernel: Axes, geometry: Geometry, together: bool = True) -> _Plan:
    """Return the convolutions that make up a transposed one, and the phases that no tap reaches.

    Args:
        kernel: Size of the kernel on each axis.
        geometry: Of the transposed convolution.
        together: One convolution computes all phases with as many taps, dilated and padded alike;
            else one phase each.
    """
    stride, padding, extra, dilation, _ = geometry
    settings = zip(kernel, stride, padding, extra, dilation, strict=True)
    axes = [_residues(*each) for each in settings]
    alike: dict[_Likeness, list[Phase]] = {}
    empty: list[Phase] = []
    for parts in product(*axes):
        phase = _phase(parts)
        if not all(phase.taps):
            empty.append(phase)
            continue
        alone = () if together else phase.residues
        likeness = _likeness(parts, alone)
        alike.setdefault(likeness, []).append(phase)
    found = []
    for like, phases in alike.items():
        step = Step(like.padding, like.dilation, tuple(phases))
        found.append(step)
    return tuple(found), tuple(empty)


def _likeness(parts: tuple[_Residue, ...], alone: Axes) -> _Likeness:
    return _Likeness(
        padding=tuple(p.padding for p in parts),
        dilation=tuple(p.dilation for p in parts),
        taps=tuple(len(p.taps) for p in parts),
        alone=alone,
    )


def _phase(parts: tuple[_Residue, ...]) -> Phase:
    return Phase(
        residues=tuple(p.residue for p in parts),
        first=tuple(p.first for p in parts),
        more=tuple(p.more for p in parts),
        taps=tuple(p.taps for p in parts),
    )


def _residues(
    kernel: int, stride: int, padding: int, extra: int, dilation: int
) -> list[_Residue]:
    """Return the residues of one axis, from its settings."""
    apart = gcd(dilation, stride)
    reach = dilation * (kernel - 1) + 1
    found = []
    for residue in range(stride):
        start = residue + padding
        taps = _taps(kernel, stride, dilation, start)
        # Outputs are (inputs - 1) * stride - 2 * padding + reach + extra; those of this residue,
        # less the inputs, divided by the stride and rounded up:
        beyond = reach + extra - stride - padding - start
        more = -(-beyond // stride)
        if not taps:
            found.append(_Residue(residue, (), 1, 0, 0, more))
            continue
        # The q-th output of this residue reads input q + shift through its first tap, and earlier
        # inputs through later taps.
        first_reach = taps[0] * dilation
        shift = (start - first_reach) // stride
        steps_back = len(taps) - 1
        earlier = steps_back * dilation // apart
        before = earlier - shift
        after = more + shift
        room = max(before, after, 0)
        part = _Residue(
            residue=residue,
            taps=tuple(reversed(taps)),
            dilation=dilation // apart,
            padding=room,
            first=room - before,
            more=more,
        )
        found.append(part)
    return found


def _taps(kernel: int, stride: int, dilation: int, start: int) -> list[int]:
    """Return the taps that outputs read which begin so far into the kernel."""
    found = []
    for tap in range(kernel):
        distance = tap * dilation - start
        if distance % stride == 0:
            found.append(tap)
    return found


def output_places(places: Axes, kernel: Axes, geometry: Geometry) -> list[int]:
    """Return the output's size on each spatial axis (torch.nn.ConvTranspose2d, "Shape")."""
    stride, padding, extra, dilation, _ = geometry
    sizes = []
    for n, k, s, p, e, d in zip(
        places, kernel, stride, padding, extra, dilation, strict=True
    ):
        reach = d * (k - 1) + 1
        span = (n - 1) * s + reach
        sizes.append(span - 2 * p + e)
    return sizes
