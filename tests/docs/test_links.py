"""Links of the pages lead somewhere: to files of the repository, and to headings that are there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from .pages import DOCS, PAGES, ROOT, blocks, name_of

EVERY = [*PAGES, ROOT / "CHANGELOG.md"]

GIVEN = {"run.py", "__init__.py", "plugin.py"}
"""Files that pages speak of and that are not the repository's, or stand in many folders."""


def tokens(page: Path) -> Iterator[Token]:
    for token in MarkdownIt().enable("table").parse(page.read_text(encoding="utf-8")):
        yield token
        yield from token.children or ()


def targets(page: Path) -> Iterator[str]:
    """Yield where a page's links and pictures lead, within the repository."""
    for token in tokens(page):
        target = str(token.attrs.get("href") or token.attrs.get("src") or "")
        if target and "://" not in target:
            yield target


def headings(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and mkdocs both name them."""
    found = set()
    before = None
    for token in tokens(page):
        if before is not None and before.type == "heading_open":
            words = re.sub(r"[^\w\s-]", "", token.content.lower())
            found.add(re.sub(r"\s", "-", words.strip()))
        if token.type != "text":
            before = token
    return found


@pytest.mark.parametrize("page", EVERY, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for target in targets(page):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor and file.suffix == ".md":
            assert anchor in headings(file), target


@pytest.mark.parametrize("page", EVERY, ids=name_of)
def test_modules_that_are_named_are_there(page: Path) -> None:
    given = {block.file for block in blocks(page) if block.file} | GIVEN
    for named in re.findall(r"`([\w/]+\.py)`", page.read_text(encoding="utf-8")):
        is_ours = any((ROOT / folder / named).exists() for folder in ("", "src/octavo"))
        assert is_ours or named in given, named


def test_every_page_is_in_the_contents() -> None:
    contents = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    named = set(re.findall(r"[\w/-]+\.md", contents))
    assert named == {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}
