"""Tables for terminals and notebooks: no name is cut inside a word, however narrow the place is.

Where a table is too wide, cells break at separators; where that is not enough, its least important
columns go down into a line of their own below each row's widest text.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from io import StringIO

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement as Widths
from rich.table import Table
from rich.text import Text

from .wrapping import pieces, wrapped

WIDE = 200
"""Columns where no terminal limits them (a pipe, a file, a text)."""

_FRAME = 3
"""Columns that a table draws beside each cell: a space on either side and a line."""

_LEAST = 4
"""Columns that a column of text is given at the least, so that it reads as one."""


@dataclass(frozen=True)
class _Column:
    """A column before it is laid out.

    Attributes:
        heading: Its heading.
        cells: One a row.
        is_figures: Whether it is aligned right; its cells break at spaces only.
    """

    heading: str
    cells: tuple[Text, ...]
    is_figures: bool

    @property
    def whole(self) -> int:
        """Width in which nothing is broken."""
        return max(_widest(text) for text in self._texts())

    @property
    def least(self) -> int:
        """Width in which no word is broken."""
        parts = [piece for text in self._texts() for piece in pieces(text.plain)]
        found = max((cell_len(part.rstrip()) for part in parts), default=1)
        return max(found, min(_LEAST, self.whole))

    def in_ascii(self) -> _Column:
        """Return the column for an encoding that may not have the sign of a millionth."""
        cells = []
        for cell in self.cells:
            plain_cell = cell.copy()
            plain_cell.plain = cell.plain.replace(" µs", " us")
            cells.append(plain_cell)
        return replace(self, cells=tuple(cells))

    def _texts(self) -> Iterator[Text]:
        yield Text(self.heading)
        yield from self.cells


def _widest(text: Text) -> int:
    return max((cell_len(line) for line in text.plain.split("\n")), default=0)


@dataclass(frozen=True)
class TextTable:
    """A table that fits into the place where it is printed.

    Attributes:
        columns: Headings.
        rows: Cells.
        title: Above the table; '' for none.
        right: Headings of the columns that are aligned right.
        least: Headings of the columns that may go below, the least important first; the others go
            after them, from the right, and the first one never.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Text, ...], ...]
    title: str = ""
    right: frozenset[str] = frozenset()
    least: tuple[str, ...] = ()

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> RenderResult:
        """Lay the table out for the width that there is."""
        if self.title:
            yield wrapped(Text(self.title, style="bold"), options.max_width)
        columns = self._laid_out(options.max_width)
        if options.ascii_only:
            columns = [column.in_ascii() for column in columns]
        widths = _widths(columns, options.max_width)
        made = Table(header_style="bold")
        for column, width in zip(columns, widths, strict=True):
            made.add_column(
                wrapped(Text(column.heading), width),
                justify="right" if column.is_figures else "left",
                width=width,
                no_wrap=True,
            )
        for row in zip(*(column.cells for column in columns), strict=True):
            cells = zip(row, widths, strict=True)
            made.add_row(*(wrapped(cell, width) for cell, width in cells))
        yield made

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Widths:
        """Return the narrowest and the widest form."""
        columns = self._columns()
        narrow = min(_total([column.least for column in columns]), options.max_width)
        wide = min(_total([column.whole for column in columns]), options.max_width)
        return Widths(narrow, max(narrow, wide))

    def __str__(self) -> str:
        return plain(self)

    def _repr_html_(self) -> str:
        """Return the table for a notebook."""
        return as_html(self)

    def _columns(self) -> list[_Column]:
        found = []
        for index, heading in enumerate(self.columns):
            cells = tuple(row[index] for row in self.rows)
            found.append(_Column(heading, cells, heading in self.right))
        return found

    def _laid_out(self, width: int) -> list[_Column]:
        """Return the columns that stand side by side; the others' cells are told below."""
        columns = self._columns()
        below: list[_Column] = []
        for column in self._expendable(columns):
            side_by_side = [c for c in columns if c not in below]
            if _total([c.least for c in side_by_side]) <= width:
                break
            below.append(column)
        if not below:
            return columns
        left = [column for column in columns if column not in below]
        in_order = [column for column in columns if column in below]
        return _with_lines_below(left, in_order)

    def _expendable(self, columns: Sequence[_Column]) -> list[_Column]:
        """Return the columns that may go below, in the order in which they go."""
        by_heading = {column.heading: column for column in columns}
        named = [by_heading[name] for name in self.least if name in by_heading]
        others = [c for c in reversed(columns[1:]) if c not in named]
        return [*named, *others]


def _with_lines_below(left: list[_Column], below: list[_Column]) -> list[_Column]:
    """Add the cells of columns that went below to the widest text column, a line each."""
    texts = [column for column in left if not column.is_figures] or left
    host = max(texts, key=lambda column: column.whole)
    cells = []
    for index, cell in enumerate(host.cells):
        told = cell.copy()
        for column in below:
            own = column.cells[index]
            if own.plain.strip() not in ("", "-"):
                told.append(f"\n{column.heading}: ", style="dim")
                told.append_text(own)
        cells.append(told)
    fuller = _Column(host.heading, tuple(cells), host.is_figures)
    return [fuller if column is host else column for column in left]


def _total(widths: Sequence[int]) -> int:
    """Return the width of a table whose cells are so wide."""
    return sum(widths) + _FRAME * len(widths) + 1


def _widths(columns: Sequence[_Column], width: int) -> list[int]:
    """Return the width of each column: whole where there is room, and else all as even as their
    words let them be."""
    whole = [column.whole for column in columns]
    if _total(whole) <= width:
        return whole
    least = [column.least for column in columns]

    def at(level: int) -> list[int]:
        bounds = zip(least, whole, strict=True)
        return [min(most, max(low, level)) for low, most in bounds]

    level = 1
    while _total(at(level + 1)) <= width:
        level += 1
    found = at(level)
    room = width - _total(found)
    for index, most in enumerate(whole):
        # What an even share leaves over goes to the first columns, which hold the names.
        if room > 0 and found[index] < most:
            found[index] += 1
            room -= 1
    if room >= 0:
        return found
    # One word alone is wider than the place: it is cut there, and nothing else is.
    widest = max(range(len(found)), key=lambda index: found[index])
    found[widest] = max(1, found[widest] + room)
    return found


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    title: str = "",
    right: Iterable[str] = (),
    least: Iterable[str] = (),
) -> TextTable:
    """Return a table.

    Args:
        columns: Headings.
        rows: Cells; anything is turned into text and never read as markup. A ``Text`` keeps its
            style.
        title: Above the table.
        right: Headings of the columns that are aligned right.
        least: Headings of the columns that go below their rows where the place is too narrow for
            all, the least important first.
    """
    cells = tuple(tuple(_cell(cell) for cell in row) for row in rows)
    return TextTable(tuple(columns), cells, title, frozenset(right), tuple(least))


def _cell(value: object) -> Text:
    return value if isinstance(value, Text) else Text(str(value))


def plain(renderable: RenderableType, width: int = 100) -> str:
    """Return what a terminal of a width would show, without colours.

    Args:
        renderable: A table, or a group of them.
        width: Columns.
    """
    kept = StringIO()
    console = Console(
        file=kept,
        width=width,
        color_system=None,
        highlight=False,
        markup=False,
        emoji=False,
    )
    # Lines to be pasted stay whole, however long they are.
    console.print(renderable, crop=False)
    lines = kept.getvalue().rstrip("\n").split("\n")
    return "\n".join(line.rstrip() for line in lines)


def as_html(found: TextTable) -> str:
    """Return a table as HTML; whatever its cells hold is text there."""
    head = _html_row("th", found.columns, found.columns, found.right)
    body = "".join(
        _html_row("td", [cell.plain for cell in row], found.columns, found.right)
        for row in found.rows
    )
    caption = f"<caption>{html.escape(found.title)}</caption>" if found.title else ""
    return f"<table>{caption}<thead>{head}</thead><tbody>{body}</tbody></table>"


def _html_row(
    tag: str, cells: Sequence[str], columns: Sequence[str], right: frozenset[str]
) -> str:
    made = []
    for cell, column in zip(cells, columns, strict=True):
        side = "right" if column in right else "left"
        own = html.escape(cell).replace("\n", "<br>")
        made.append(f'<{tag} style="text-align: {side}">{own}</{tag}>')
    return f"<tr>{''.join(made)}</tr>"
