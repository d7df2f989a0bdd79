"""At any width, a name stays whole and a cell breaks between words only."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .conftest import LONG, Command

WORDS = (
    "classifier",
    "parameters",
    "conv",
    "linear",
    "accuracy",
    "latency",
    "w8a8",
    "per channel",
)


def words_of(table: str) -> set[str]:
    """Return the words of a text, without the lines of its tables."""
    return set(re.sub(r"[^\w.,%-]", " ", table).split())


@pytest.mark.parametrize("width", [60, 80])
def test_no_word_is_cut(
    octavo: Command,
    model: Path,
    data: Path,
    tuned: Path,
    monkeypatch: pytest.MonkeyPatch,
    width: int,
) -> None:
    commands: tuple[tuple[object, ...], ...] = (
        ("inspect", model),
        ("inspect", tuned),
        ("history", tuned),
        ("capabilities", model),
        ("schemes", model),
        ("plugins",),
        ("sensitivity", model, "--data", data, "--batches", 1),
        ("report", tuned, "-o", "page.html"),
        ("compare", tuned, model),
    )
    for command in commands:
        monkeypatch.setenv("COLUMNS", "400")
        whole = octavo(*command).out
        monkeypatch.setenv("COLUMNS", str(width))
        narrow = octavo(*command).out
        tables = [line for line in narrow.splitlines() if line[:1] in "┃│┏┡└"]
        assert tables, command
        assert max(map(len, tables)) <= width, command
        # A name may break at its separators, so its parts are looked for.
        parts = {part for word in words_of(whole) for part in re.split(r"[._-]", word)}
        found = {part for word in words_of(narrow) for part in re.split(r"[._-]", word)}
        assert not {part for part in found - parts if part.isalpha()}, command


def test_a_pipe_is_wide(octavo: Command, model: Path) -> None:
    assert f"│ {LONG} │ conv" in octavo("inspect", model).out
