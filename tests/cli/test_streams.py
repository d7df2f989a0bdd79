"""Every command under encodings that lack what it prints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .conftest import Command

ENCODINGS = ("ascii", "cp437")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_command_prints_in_any_encoding(
    octavo: Command, model: Path, data: Path, tuned: Path, encoding: str
) -> None:
    commands: tuple[tuple[object, ...], ...] = (
        ("-h",),
        ("tune", "-h"),
        ("inspect", model),
        ("inspect", tuned),
        ("history", tuned),
        ("history",),
        ("report", tuned, "-o", "page.html"),
        ("check", tuned, "--data", data),
        ("compare", tuned, model),
        ("plugins",),
        ("schema",),
        ("capabilities", model),
        ("inspect", "nowhere-\N{SNOWMAN}.onnx"),
        ("tune", model, "--data", data, "--dry-run"),
    )
    for command in commands:
        ended = octavo(*command, encoding=encoding)
        assert ended.code == (2 if "nowhere-\N{SNOWMAN}.onnx" in command else 0), (
            command
        )
        assert ended.out or ended.err


def test_bars_and_boxes_are_of_what_the_encoding_has(
    octavo: Command, model: Path, data: Path
) -> None:
    command = ("sensitivity", model, "--data", data, "--batches", 1)
    in_ascii = octavo(*command, encoding="cp1252").out
    assert "####" in in_ascii
    assert in_ascii.isascii()
    assert "\N{FULL BLOCK}" in octavo(*command).out


def test_json_is_read_whatever_the_encoding(octavo: Command, model: Path) -> None:
    ended = octavo("inspect", "ü.onnx", "--json", encoding="ascii")
    assert "ü.onnx" in json.loads(ended.out)["error"]["message"]
