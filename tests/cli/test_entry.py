"""What every command has: help, a version, errors with their exit codes, and JSON for them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import octavo as library
from octavo.cli import app
from octavo.cli.face.failures import UsageError

from .conftest import Command

COMMANDS = tuple(
    command.name for command in app.registered_commands if command.name is not None
)


def test_the_version_is_the_packages(octavo: Command) -> None:
    ended = octavo("--version")
    assert (ended.code, ended.out) == (0, f"octavo {library.__version__}\n")


def test_help_without_arguments_lists_every_command(octavo: Command) -> None:
    shown = octavo()
    assert shown.code == 0
    assert all(f"  {name} " in shown.out for name in COMMANDS)
    assert octavo("-h").out == octavo("--help").out == shown.out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_is_narrow_and_has_examples(
    octavo: Command, command: str
) -> None:
    shown = octavo(command, "-h")
    assert shown.code == 0
    lines = shown.out.splitlines()
    examples = lines.index("Examples")
    assert all(len(line) <= 80 for line in lines[:examples])
    assert any(line.startswith(f"  octavo {command}") for line in lines[examples:])


def test_completion_is_offered(octavo: Command) -> None:
    assert "--show-completion" in octavo("-h").out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("tunee",), "Did you mean 'tune'"),
        (("tune",), "MODEL"),
        (("tune", "m.onnx", "--nonsense"), "--nonsense"),
        (("report", "nowhere"), "nowhere does not exist"),
        (("check", "nowhere", "--data", "d.npz"), "nowhere does not exist"),
        (("compare", "nowhere", "elsewhere"), "nowhere does not exist"),
        (("inspect", "nowhere.onnx"), "nowhere.onnx does not exist"),
        (("history", "nowhere.db"), "nowhere.db does not exist"),
        (("sensitivity", "nowhere.onnx"), "--data"),
        (("inspect", "."), "'.' is a folder and no saved result"),
        (("history", "."), ". is a folder and no saved result"),
        (("capabilities", "/dev/null"), "no backend opens the file '/dev/null'"),
        (("capabilities", "--backend", "onx"), "did you mean 'onnx'"),
        (
            ("quantize", "m.onnx", "--scheme", "int8-statc"),
            "did you mean 'int8-static'",
        ),
        (("quantize", "nowhere.onnx", "--scheme", "int8-dynamic"), "does not exist"),
        (("export", "nowhere", "--to", "standalon", "-o", "x"), "'standalone'"),
    ],
)
def test_wrong_usage_ends_with_2_in_words_and_in_json(
    octavo: Command, arguments: tuple[str, ...], said: str
) -> None:
    ended = octavo(*arguments)
    assert ended.code == 2
    assert ended.out == ""
    assert said in ended.err
    assert "Traceback" not in ended.err
    told = json.loads(octavo(*arguments, "--json").out)
    assert told["exit_code"] == 2
    assert said in told["error"]["message"]
    assert told["error"]["type"]


def test_usage_errors_are_known_by_their_family() -> None:
    assert issubclass(UsageError, Exception)
    assert UsageError is not Exception


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--metric", "acuracy"), "did you mean 'accuracy'"),
        (("--strategy", "bsic"), "did you mean 'basic'"),
        (("--minimise", "latncy"), "did you mean 'latency'"),
        (("--backend", "onx"), "did you mean 'onnx'"),
        (("--max-trials", "-1"), "max_trials"),
        (("--output", "photos"), "no octavo result"),
    ],
)
def test_a_typo_is_told_before_data_are_read_or_a_model_is_made(
    octavo: Command, tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    (tmp_path / "small.npz").write_bytes(b"this would be refused if it were read")
    (tmp_path / "making.py").write_text("def model():\n    raise AssertionError\n")
    ended = octavo("tune", "making:model", "--data", "small.npz", *options)
    assert ended.code == 2
    assert said in ended.err


@pytest.mark.parametrize("option", ["--data", "--config", "--calibration"])
def test_a_missing_file_is_wrong_usage(
    octavo: Command, model: Path, data: Path, option: str
) -> None:
    given = [] if option == "--data" else ["--data", data]
    ended = octavo("tune", model, *given, option, "nowhere.npz")
    assert ended.code == 2
    assert f"{option}: nowhere.npz does not exist" in ended.err
