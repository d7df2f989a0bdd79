"""The page of ``octavo.plugin``: its names by purpose, as the module itself groups them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

MODULE = Path(__file__).resolve().parent.parent / "src" / "octavo" / "plugin.py"

LINE = re.compile(r"^    (?:# (?P<group>.+)|\"(?P<name>\w+)\",)$", re.MULTILINE)


def plugin() -> str:
    """Return Markdown: each group of ``__all__`` with its names, for mkdocstrings to fill in."""
    text = MODULE.read_text(encoding="utf-8")
    _, _, rest = text.partition("__all__ = [\n")
    names = rest.partition("\n]")[0]
    return "\n".join(_lines(names))


def _lines(names: str) -> Iterator[str]:
    for line in LINE.finditer(names):
        if line["group"]:
            heading = line["group"].partition(":")[0].rstrip(".")
            yield from (f"## {heading}", "")
        else:
            yield from (f"::: octavo.plugin.{line['name']}", "")
