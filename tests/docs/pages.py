"""Pages and their blocks of code."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parent.parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]

RUN = ("python", "sh")
SETTINGS = ("toml", "yaml", "json")
LANGUAGES = (*RUN, *SETTINGS, "text")

FILE = re.compile(r"# (?P<name>[\w./-]+\.\w+)$")
COMMENT = re.compile(r"<!-- (?P<word>\w+)(?:: (?P<why>.+?))? -->", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One block of code.

    Attributes:
        page: Where it stands.
        line: The line of its fence, from 1.
        language: The word after the fence.
        code: Its text.
        comment: Word and text of the comment before it: ``("fragment", "why")``.
    """

    page: Path
    line: int
    language: str
    code: str
    comment: tuple[str, str] = ("", "")

    @property
    def is_fragment(self) -> bool:
        """True if the page says that it is not run."""
        return self.comment[0] == "fragment"

    @property
    def is_output(self) -> bool:
        """True if it is what the block before must print."""
        return self.comment[0] == "output"

    @cached_property
    def file(self) -> str:
        """The file that it is written to, or an empty text."""
        first = self.code.partition("\n")[0]
        named = FILE.fullmatch(first)
        return named["name"] if named else ""

    def __str__(self) -> str:
        return f"{name_of(self.page)}:{self.line}"


def name_of(page: Path) -> str:
    """Return a page's path in the repository."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[Block]:
    """Return the blocks of a page in order; those inside of lists and quotes too."""
    tokens = MarkdownIt().parse(page.read_text(encoding="utf-8"))
    return [
        _block(page, token, before)
        for before, token in zip([None, *tokens], tokens, strict=False)
        if token.type in ("fence", "code_block")
    ]


def _block(page: Path, token: Token, before: Token | None) -> Block:
    (line, _) = token.map or (0, 0)
    language = token.info.split(" ")[0] if token.type == "fence" else "indented"
    comment = _comment(before)
    return Block(page, line + 1, language, token.content, comment)


def _comment(token: Token | None) -> tuple[str, str]:
    if token is None or token.type != "html_block":
        return ("", "")
    found = COMMENT.fullmatch(token.content.strip())
    return (found["word"], found["why"] or "") if found else ("", "")
