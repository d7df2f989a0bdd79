"""The project's own check of house rules finds what it is for, and finds nothing in the house."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests import house

DENSE = {
    "x = 1 if a else 2 if b else 3": "inside another",
    "x = 1 if (2 if b else a) else 3": "inside another",
    "x = 1 if a else f(lambda: 2 if b else 3)": "inside another",
    "x = [i for a in b for i in a if i]": "3 clauses",
    "x = {k: v for k, v in a if k if v}": "3 clauses",
    "x = sum(i for a in b for c in a for i in c)": "3 clauses",
}
PLAIN = (
    "x = 1 if a else 2",
    "x = [i for a in b for i in a]",
    "x = {i for i in a if i}",
    "x = [[i for i in a if i] for a in b]",
    "x = (1 if a else 2) + (3 if b else 4)",
)


@pytest.mark.parametrize("text", DENSE)
def test_dense_expressions_are_found(text: str) -> None:
    ((line, wrong),) = house.dense_expressions(text)
    assert line == 1
    assert DENSE[text] in wrong


@pytest.mark.parametrize("text", PLAIN)
def test_plain_expressions_are_not(text: str) -> None:
    assert not list(house.dense_expressions(text))


def test_large_files_and_folders_need_a_reason(tmp_path: Path) -> None:
    room = tmp_path / "core" / "room"
    room.mkdir(parents=True)
    for number in range(21):
        (room / f"module{number}.py").write_text("x = 1\n")
    (room / "module0.py").write_text("x = 1\n" * 351)
    told = list(house.large(tmp_path, set()))
    assert [t.split(":")[0] for t in told] == ["core/room/module0.py", "core/room"]
    assert not list(house.large(tmp_path, {"core/room/module0.py", "core/room"}))


def test_a_reason_for_what_is_small_is_told_of(tmp_path: Path) -> None:
    (told,) = house.large(tmp_path, {"core/gone.py"})
    assert "core/gone.py" in told


def test_reasons_are_read_from_their_table_only() -> None:
    page = """
| `core/other.py` | of another table |

## Large files and folders

| what | why |
|---|---|
| `core/large.py` | one table of 400 rows |
| `core/empty.py` | |

## Errors

| `core/later.py` | another table |
"""
    assert house.reasons(page) == {"core/large.py"}


def test_the_house_keeps_its_rules() -> None:
    assert list(house.problems()) == []


def ruff(*arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    """Run the linter with the project's settings."""
    command = [sys.executable, "-m", "ruff", *arguments]
    return subprocess.run(
        command,
        input=given,
        capture_output=True,
        text=True,
        cwd=house.ROOT,
        check=False,
    )


@pytest.mark.parametrize("arguments", [("check",), ("format", "--check")])
def test_the_linter_finds_nothing(arguments: tuple[str, ...]) -> None:
    done = ruff(*arguments, "--no-cache", ".")
    assert done.returncode == 0, done.stdout + done.stderr


BRANCHES = "".join(f"    if x == {n}:\n        return {n}\n" for n in range(12))


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("E501", '"""A module."""\n\nNAME = "' + "x" * 100 + '"\n'),
        (
            "C901",
            f'"""A module."""\n\n\ndef many(x):\n    """Do."""\n{BRANCHES}    return 0\n',
        ),
    ],
)
def test_the_linter_looks_at_length_and_complexity(code: str, text: str) -> None:
    done = ruff(
        "check", "--no-cache", "--stdin-filename", "core/new.py", "-", given=text
    )
    assert done.returncode == 1
    assert code in done.stdout
