"""A hook of mkdocs: what the site's pages need beyond their Markdown.

- Links that lead out of ``docs`` (to the sources) become links to the repository.
- Comments are left out: they are the harness's (``tests/docs``).
- The pages of settings, commands and ``octavo.plugin`` are filled from the schema, the command line
  and the module.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

from scripts.commands_page import commands
from scripts.plugin_page import plugin
from scripts.settings_page import settings

SOURCES = "https://github.com/octavo/octavo/blob/main/"

GENERATED: dict[str, Callable[[], str]] = {
    "commands": commands,
    "plugin": plugin,
    "settings": settings,
}

FENCE = re.compile(r"^( *)(`{3,})[^\n]*\n.*?^\1\2 *$", re.MULTILINE | re.DOTALL)
PLACE = re.compile(r"<!-- generated: (\w+) -->")
COMMENT = re.compile(r"^ *<!--.*?-->\n?", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(\]\()([^)\s#:]+)((?:#[^)]*)?\))")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Return the page as mkdocs reads it. Called by mkdocs."""
    folder = PurePosixPath(page.file.src_uri).parent
    return outside_of_code(markdown, lambda text: prepared(text, folder))


def outside_of_code(markdown: str, change: Callable[[str], str]) -> str:
    """Return the page with its text changed, and its blocks of code as they are."""
    done, end = [], 0
    for block in FENCE.finditer(markdown):
        done += [change(markdown[end : block.start()]), block[0]]
        end = block.end()
    return "".join([*done, change(markdown[end:])])


def prepared(text: str, folder: PurePosixPath) -> str:
    """Return text of a page in this folder of ``docs``, ready for mkdocs."""
    text = PLACE.sub(lambda place: GENERATED[place[1]](), text)
    text = COMMENT.sub("", text)
    return LINK.sub(lambda link: link[1] + target(link[2], folder) + link[3], text)


def target(link: str, folder: PurePosixPath) -> str:
    """Return where a link leads on the site: out of ``docs`` is in the repository."""
    path = os.path.normpath(PurePosixPath("docs") / folder / link)
    is_page = path.startswith("docs/")
    return link if is_page else SOURCES + path
