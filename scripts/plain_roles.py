"""A griffe extension: Sphinx roles of the docstrings become plain code for Markdown.

``:class:`~octavo.core.values.trial.Trial` `` is read as `` `Trial` ``.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":[a-z]+:`(~?)([^`]+)`")


def plain(text: str) -> str:
    """Return the text with roles as code; a path after ``~`` is shown by its last name."""
    return ROLE.sub(_code, text)


def _code(found: re.Match[str]) -> str:
    short, path = found[1], found[2]
    name = path.rpartition(".")[2] if short else path
    return f"`{name}`"


class PlainRoles(griffe.Extension):
    """Rewrites docstrings as they are loaded."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite one object's docstring."""
        if obj.docstring is not None:
            obj.docstring.value = plain(obj.docstring.value)
