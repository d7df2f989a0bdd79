"""Standard streams that take any text, whatever their encoding.

A pipe on Windows is cp1252 or cp437, and a service may run under ascii: a name or a bar that such
a stream cannot hold must not end a command with a traceback.
"""

from __future__ import annotations

import codecs
import sys
from typing import TextIO

LOOKALIKES = {
    "\N{FULL BLOCK}": "#",
    "\N{LEFT ONE EIGHTH BLOCK}": "|",
    "\N{BOX DRAWINGS HEAVY HORIZONTAL}": "-",
    "\N{BOX DRAWINGS HEAVY LEFT}": "-",
    "\N{BOX DRAWINGS HEAVY RIGHT}": "-",
    "\N{BOX DRAWINGS LIGHT HORIZONTAL}": "-",
    "\N{EN DASH}": "-",
    "\N{EM DASH}": "-",
    "\N{MINUS SIGN}": "-",
    "\N{HORIZONTAL ELLIPSIS}": "~",
    "\N{MULTIPLICATION SIGN}": "x",
    "\N{MIDDLE DOT}": ".",
    "\N{BULLET}": "*",
    "\N{PLUS-MINUS SIGN}": "+",
    "\N{LESS-THAN OR EQUAL TO}": "<",
    "\N{GREATER-THAN OR EQUAL TO}": ">",
    "\N{ALMOST EQUAL TO}": "~",
    "\N{RIGHTWARDS ARROW}": ">",
    "\N{LEFTWARDS ARROW}": "<",
    "\N{UPWARDS ARROW}": "^",
    "\N{DOWNWARDS ARROW}": "v",
    "\N{CHECK MARK}": "+",
    "\N{BALLOT X}": "x",
    "\N{MICRO SIGN}": "u",
    "\N{GREEK SMALL LETTER MU}": "u",
    "\N{LEFT DOUBLE QUOTATION MARK}": '"',
    "\N{RIGHT DOUBLE QUOTATION MARK}": '"',
    "\N{LEFT SINGLE QUOTATION MARK}": "'",
    "\N{RIGHT SINGLE QUOTATION MARK}": "'",
}
"""What stands for a sign that an encoding lacks: one column each, so that tables stay straight."""

HANDLER = "octavo.readable"
"""Name of the codecs' error handler."""


def readable(error: UnicodeError) -> tuple[str, int]:
    """Replace what an encoding lacks: signs by their lookalikes, letters by their escapes.

    An escape (``\\xfc``) tells exactly which letter of a name it was.

    Raises:
        UnicodeError: If it was not met while a text was encoded.
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    return "".join(map(_replaced, missing)), error.end


def _replaced(character: str) -> str:
    if character in LOOKALIKES:
        return LOOKALIKES[character]
    return character.encode("ascii", "backslashreplace").decode("ascii")


def prepare_streams() -> None:
    """Let standard output and standard error take every text."""
    codecs.register_error(HANDLER, readable)
    for stream in (sys.stdout, sys.stderr):
        # Whoever runs a command inside a process may have put any object there.
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors=HANDLER)


def is_unicode(stream: TextIO) -> bool:
    """Return whether a stream takes every character."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return encoding.lower().replace("_", "-").startswith("utf")
