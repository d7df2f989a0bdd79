"""The page of commands: typer's own description of the command line."""

from __future__ import annotations

import re

import typer
from typer.cli import get_docs_for_click

from octavo.cli import app

CODE = re.compile(r"(```.*?```|`[^`\n]*`)", re.DOTALL)
EXAMPLES = re.compile(r"(?:^ *octavo [^\n]*\n)+", re.MULTILINE)


def commands() -> str:
    """Return Markdown: every command, its arguments, options and examples."""
    command = typer.main.get_command(app)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command), name="octavo")
    _, _, body = text.partition("\n")  # the page has a title of its own
    return _outside_of_code(EXAMPLES.sub(_as_code, body))


def _as_code(found: re.Match[str]) -> str:
    """Return examples, which typer's text has as bare lines, as a block of commands."""
    lines = [line.strip() for line in found[0].splitlines()]
    return "\n".join(["**Examples**:", "", "```sh", *lines, "```", ""])


def _outside_of_code(text: str) -> str:
    """Return the text with ``<name>`` outside of code kept from being read as HTML."""
    parts = CODE.split(text)
    # Odd parts are code, where Markdown shows angles as they are.
    parts[::2] = [part.replace("<", "&lt;") for part in parts[::2]]
    return "".join(parts)
