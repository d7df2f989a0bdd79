"""Axes of the page's charts: which range they show, and where a value lies on it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

WIDE_RANGE = 8
"""Ratio of the largest value to the smallest from which on a linear axis would press most of them
together."""
ROOM = 0.07
"""Share of an axis that stays empty at either end, so that no mark touches the edge."""
MOST_TICKS = 6
"""Labels of an axis at most: more run into each other on a phone."""


def plain(value: float) -> str:
    """Return a number of an axis as people write it."""
    return f"{value:.6g}"


@dataclass(frozen=True)
class Axis:
    """A range of values and its places in percent.

    Attributes:
        name: What it shows, in words.
        low: The value at 0 %.
        high: The value at 100 %.
        is_log: Whether equal ratios lie equally far apart.
        label: How a value reads at a tick; None for as many decimals as the ticks need.
    """

    name: str
    low: float
    high: float
    is_log: bool = False
    label: Callable[[float], str] | None = None

    def holds(self, value: float) -> bool:
        """True if a value lies on the axis."""
        return self.low <= value <= self.high

    def at(self, value: float) -> float:
        """Return a value's place in percent; what lies beyond an end is put at that end."""
        kept = min(max(value, self.low), self.high)
        if self.is_log:
            return 100 * math.log(kept / self.low) / math.log(self.high / self.low)
        return 100 * (kept - self.low) / (self.high - self.low)

    @cached_property
    def ticks(self) -> tuple[tuple[float, str], ...]:
        """Places in percent with their labels."""
        values = self._log_ticks() if self.is_log else self._linear_ticks()
        kept = [value for value in values if self.holds(value)]
        label = self.label or _common_label(kept)
        return tuple((self.at(value), label(value)) for value in kept)

    def _linear_ticks(self) -> Sequence[float]:
        from matplotlib.ticker import MaxNLocator

        locator = MaxNLocator(MOST_TICKS, steps=[1, 2, 2.5, 5, 10])
        return [float(value) for value in locator.tick_values(self.low, self.high)]

    def _log_ticks(self) -> Sequence[float]:
        from matplotlib.ticker import LogLocator

        for steps in ((1.0, 2.0, 5.0), (1.0, 3.0), (1.0,)):
            locator = LogLocator(subs=steps, numticks=99)
            found = locator.tick_values(self.low, self.high)
            values = [float(value) for value in found if self.holds(value)]
            if len(values) <= MOST_TICKS + 2:
                return values
        every = math.ceil(len(values) / MOST_TICKS)
        return values[::every]


def _common_label(values: Sequence[float]) -> Callable[[float], str]:
    """Return a label that gives all ticks the same decimals, as many as tell them apart."""
    if len(values) < 2:
        return plain
    texts = {plain(value) for value in values}
    largest = max(abs(value) for value in values)
    decimals = max(len(text.partition(".")[2]) for text in texts)
    is_odd = any("e" in text for text in texts) or largest >= 1e6
    # Six digits do not tell ticks apart that differ in the seventh.
    if is_odd or len(texts) < len(values):
        return lambda value: f"{value:.9g}"
    ratios = [high / low for low, high in pairwise(values) if low]
    if ratios and max(ratios) > 1.5 and min(ratios) > 1.5:
        return plain
    return lambda value: f"{value:.{decimals}f}"


def axis_of(
    name: str,
    values: Iterable[float],
    *,
    may_be_log: bool = False,
    label: Callable[[float], str] | None = None,
) -> Axis:
    """Return an axis that fits finite values, with room at both ends.

    Args:
        name: What it shows.
        values: Which values it must hold, at least one.
        may_be_log: Whether values that span a wide range of ratios make it logarithmic.
        label: How a tick reads.
    """
    known = list(values)
    low, high = min(known), max(known)
    if may_be_log and low > 0 and high / low > WIDE_RANGE:
        room = (high / low) ** ROOM
        return Axis(name, low / room, high * room, True, label)
    # Equal values get an axis about them: of their own size, or of 1 where they are 0.
    span = high - low or abs(high) * 0.02 or 1.0
    return Axis(name, low - ROOM * span, high + ROOM * span, False, label)
