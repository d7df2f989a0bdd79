"""What a chart of the page is made of. The template draws it; nothing here is markup.

Places are in percent and texts in the page's own size: a chart takes any width, and its text is as
legible on a phone as on a wide screen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .axes import Axis

SHAPES = ("circle", "square", "triangle", "diamond", "down", "plus")
"""Backends differ in shape as well as in colour."""
SERIES = len(SHAPES)
"""How many colours the style sheet knows; further backends begin again with the first."""

Line = tuple[float, float, float, float]
"""(x1, y1, x2, y2) in percent."""


@dataclass(frozen=True, slots=True)
class Look:
    """How a mark looks, and what it stands for in the legend.

    Attributes:
        shape: One of :data:`SHAPES`, or ``cross``.
        colour: A class of the style sheet: ``s0`` to ``s5``, ``ink``, ``good``, ``bad``.
        hollow: Whether only its outline is drawn.
        label: In the legend.
    """

    shape: str
    colour: str
    hollow: bool
    label: str


@dataclass(frozen=True, slots=True)
class Mark:
    """One trial in a chart, or another point.

    Attributes:
        x: Place in percent from the left.
        y: Place in percent from the top.
        look: How it looks.
        target: The id of the row that it leads to.
        told: What hovering over it tells, line by line.
        width: In pixels.
        spread: Ends of its spread in percent from the left; None where that is not known.
        is_best: Whether it is the trial that was chosen.
    """

    x: float
    y: float
    look: Look
    target: str
    told: tuple[str, ...]
    width: float = 14
    spread: tuple[float, float] | None = None
    is_best: bool = False

    @property
    def called(self) -> str:
        """A trial's number as its row has it."""
        return f"#{self.target.rpartition('-')[2]}"

    @property
    def title(self) -> str:
        """What it tells, in one text."""
        return "\n".join(self.told)


@dataclass(frozen=True)
class Level:
    """A line across a chart.

    Attributes:
        y: Place in percent from the top.
        colour: A class of the style sheet.
        label: In the legend.
    """

    y: float
    colour: str
    label: str


@dataclass(frozen=True)
class Plot:
    """A chart of trials.

    Attributes:
        name: What makes its ids unique in the page.
        title: Read aloud first.
        description: Read aloud next.
        x: The horizontal axis.
        y: The vertical axis.
        marks: Trials, the float model's first.
        levels: Lines across.
        lines: Segments that connect the best trade-offs.
        notes: What a reader must know beside it, in sight.
        leads: Where a mark leads, read aloud last.
        line: What the legend calls the segments.
    """

    name: str
    title: str
    description: str
    x: Axis
    y: Axis
    marks: Sequence[Mark]
    levels: Sequence[Level] = ()
    lines: Sequence[Line] = ()
    notes: Sequence[str] = ()
    leads: str = "Every mark leads to its row in the table of trials."
    line: str = "best trade-offs"

    @property
    def looks(self) -> tuple[Look, ...]:
        """What the legend explains, once each, in the order of the marks."""
        return tuple(dict.fromkeys(mark.look for mark in self.marks))

    @property
    def best(self) -> Mark | None:
        """The chosen trial's mark."""
        return next((mark for mark in self.marks if mark.is_best), None)
