"""Gram matrices of large models, a few at a time.

A Gram matrix has the square of an op's features; those of all layers together outgrow the model
that they serve. Where they pass a limit, calibration keeps those of the first layers, and each
further page of them is observed by one more pass over the data when an algorithm first asks for one
of it. The page before is let go first, so memory does not grow with a model's depth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import copy
from math import prod
from typing import Self

from octavo.core.contract.calibrator import Observer, Probe
from octavo.core.numerics.channels import Changes, ChannelMap, chained
from octavo.core.values.graph import Op

from .input_features import feature_probes

GRAM_BYTES = 2**30
"""About what one block of a language model of seven billion parameters takes."""

Page = tuple[Probe, ...]


class Pages:
    """Observers of which one page is there at a time.

    Args:
        pages: What is observed together.
        observe: (probes, what was done to values) -> their observers, by one pass over the data.
    """

    def __init__(
        self,
        pages: Iterable[Page],
        observe: Callable[[Page, Changes], Mapping[Probe, Observer]],
    ) -> None:
        self._pages = {probe: page for page in pages for probe in page}
        self._observe = observe
        self._changes: Changes = {}
        self._open: dict[Pages, Mapping[Probe, Observer]] = {}

    def __contains__(self, probe: Probe) -> bool:
        return probe in self._pages

    def observer(self, probe: Probe) -> Observer | None:
        """Return one observer, with the page that it is on; None if it is on none."""
        page = self._pages.get(probe)
        if page is None:
            return None
        if probe not in self._open.get(self, {}):
            self._open.clear()
            self._open[self] = self._observe(page, self._changes)
        return self._open[self][probe]

    def changed(self, changes: Mapping[str, ChannelMap]) -> Self:
        """Return the pages of a model whose values are changed once more.

        Still one of all of them is there at a time.
        """
        derived = copy(self)
        derived._changes = dict(self._changes)
        for probe in self._pages:
            change = changes.get(probe.value)
            if change is None or probe.rows is None:
                continue
            before, _ = self._changes.get(probe.value, ((), 0))
            maps = chained((*before, change))
            derived._changes[probe.value] = (maps, probe.rows.channel_axis)
        return derived


def paged(
    probes: Iterable[Probe], ops: Iterable[Op], limit: int
) -> tuple[Page, tuple[Page, ...]]:
    """Divide what is to be observed.

    Args:
        probes: All of it.
        ops: The model's, in execution order.
        limit: Bytes that Gram matrices may take at a time.

    Returns:
        What is observed at once, and the pages of Gram matrices for later: none, where all of them
        are within the limit; else half of it is for those that stay and half for the open page. A
        page holds one at least.
    """
    wanted = tuple(probes)
    asked = set(wanted)
    sizes = {probe: size for probe, size in _gram_sizes(ops) if probe in asked}
    if sum(sizes.values()) <= limit:
        return wanted, ()
    # The first page stays beside whichever other one is open.
    _, *later = _filled(sizes, limit // 2)
    late = {probe for page in later for probe in page}
    return tuple(p for p in wanted if p not in late), tuple(later)


def _gram_sizes(ops: Iterable[Op]) -> Iterator[tuple[Probe, int]]:
    """Yield the Gram matrices that ops may ask for, with their bytes."""
    for op in ops:
        for weight in op.weights:
            features = prod(weight.shape) // max(1, weight.shape[weight.channel_axis])
            for probe in feature_probes(op, ("gram",)):
                assert probe.rows is not None
                elements = probe.rows.groups * features**2
                yield probe, 4 * elements  # float32


def _filled(sizes: Mapping[Probe, int], room: int) -> list[Page]:
    """Return pages in order, each of which takes ``room`` bytes at most, or one probe."""
    pages: list[list[Probe]] = [[]]
    left = room
    for probe, size in sizes.items():
        if pages[-1] and size > left:
            pages.append([])
            left = room
        pages[-1].append(probe)
        left -= size
    return [tuple(page) for page in pages]
