"""The page of commands: typer's own description of the command line."""

from __future__ import annotations

import re

import typer
from typer.cli import get_docs_for_click

from octavo.cli import app


def commands() -> str:
    """Return Markdown: every command, its arguments and options."""
    command = typer.main.get_command(app)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command), name="octavo")
    _, _, body = text.partition("\n")  # the page has a title of its own
    return _angles_as_text(body)


def _angles_as_text(text: str) -> str:
    """Return the text with ``<name>`` outside of code kept from being read as HTML."""
    parts = re.split(r"(```.*?```|`[^`\n]*`)", text, flags=re.DOTALL)
    # Odd parts are code, where Markdown shows angles as they are.
    parts[::2] = [part.replace("<", "&lt;") for part in parts[::2]]
    return "".join(parts)
