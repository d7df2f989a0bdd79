"""Lines of a width: broken at spaces and at the separators of names, never inside a word."""

from __future__ import annotations

import re

from rich.cells import cell_len, chop_cells
from rich.text import Text

_BREAK = re.compile(
    r"(?<![\d\s])\s+|(?<=\d)\s+(?!(?:ms|s|µs|us|B|kB|MB|GB|dB|min|h|%)(?!\w))"
    # after spaces, but for those between a figure and its unit
    r"|(?<=[/_])(?=\w)"  # after a slash or an underscore
    r"|(?<=[^\W\d_]\.)(?=\w)|(?<=\d\.)(?=[^\W\d_])"  # after a dot that is no decimal point
    r"|(?<=\w-)(?=[^\W\d_])"  # after a hyphen that is no sign
)
"""Where a text may be broken."""


def pieces(text: str) -> list[str]:
    """Return a text in the pieces that stay whole: it may be broken between any two of them."""
    found = []
    start = 0
    for match in _BREAK.finditer(text):
        if match.end() > start:
            found.append(text[start : match.end()])
            start = match.end()
    found.append(text[start:])
    return [piece for piece in found if piece]


def wrapped(text: Text, width: int) -> Text:
    """Return a text whose lines are at most so wide.

    A piece that is wider than that for itself is cut, for it fits nowhere.
    """
    lines = [_wrapped_line(line, width) for line in text.split("\n", allow_blank=True)]
    return Text("\n").join(lines)


def _wrapped_line(line: Text, width: int) -> Text:
    ends = []
    used = 0
    at = 0
    for piece in pieces(line.plain):
        for fitting in _fitting(piece, width):
            if used and used + cell_len(fitting.rstrip()) > width:
                ends.append(at)
                used = 0
            used += cell_len(fitting)
            at += len(fitting)
    broken = list(line.divide(ends))
    for part in broken:
        part.rstrip()
    return Text("\n").join(broken)


def _fitting(piece: str, width: int) -> list[str]:
    """Return a piece whole, or cut where it is wider than any line."""
    if cell_len(piece.rstrip()) <= width:
        return [piece]
    return chop_cells(piece, width)
