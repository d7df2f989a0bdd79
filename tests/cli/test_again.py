"""The line behind "again:" is run in a shell, as it is printed."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from octavo.cli.face.again import again
from octavo.core.storage.history import read_history

from .conftest import Command, environment, tune_arguments


def line_of(shown: str) -> str:
    """Return the command behind "again:"."""
    (line,) = [x for x in shown.splitlines() if x.startswith("again: ")]
    return line.removeprefix("again: ")


def shell(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a line in a shell."""
    return subprocess.run(
        line,
        shell=True,
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def interrupted(model: Path, data: Path, tmp_path: Path) -> str:
    """What a run printed that Ctrl-C ended in its second trial."""
    (tmp_path / "slow.py").write_text(
        "import time\ndef score(model):\n    time.sleep(0.3)\n    return 1.0\n"
    )
    score = ["--evaluate", "slow:score", "--metric", "accuracy"]
    limits = ["--strategy", "exhaustive", "--max-trials", "3", "--minimise", "size"]
    command = ["tune", str(model), "--data", str(data), *score, *limits, "-o", "cut"]
    running = subprocess.Popen(
        [sys.executable, "-m", "octavo", *command, "--no-report"],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert running.stderr is not None
        while "trial 1 on onnx" not in (told := running.stderr.readline()):
            assert told, "it ended before it was interrupted"
        running.send_signal(signal.SIGINT)
        shown, error = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode == 130, error
    assert "Traceback" not in error
    return shown


def test_it_goes_on_after_an_interruption_and_is_at_once_done_after_that(
    interrupted: str, tmp_path: Path
) -> None:
    line = line_of(interrupted)
    first = shell(line, tmp_path)
    assert first.returncode == 0, first.stderr
    trials = read_history(tmp_path / "cut.db")[1]
    assert [trial.number for trial in trials] == [0, 1, 2, 3], (
        first.stdout + first.stderr
    )
    second = shell(line_of(first.stdout), tmp_path)
    assert second.returncode == 0, second.stderr
    assert "no trial was run" in second.stderr
    assert read_history(tmp_path / "cut.db")[1] == trials


def test_a_fresh_run_keeps_the_old_history_and_is_not_fresh_again(
    octavo: Command, model: Path, data: Path, tuned: Path
) -> None:
    del tuned  # made by the same command: what it warmed up is warm
    command = [*tune_arguments(model, data), "--max-trials", 1, "-o", "r", "-q"]
    assert octavo(*command).code == 0
    ended = octavo(*command, "--fresh")
    assert ended.code == 0, ended.err
    (aside,) = Path().glob("r-until-*.db")
    assert str(aside) in ended.err
    assert len(read_history(aside)[1]) == len(read_history("r.db")[1]) == 2
    assert "--fresh" not in line_of(ended.out)
    refused = octavo(*command, "--no-resume")
    assert refused.code == 1
    assert "already holds" in refused.err


def test_a_line_is_quoted_for_a_shell() -> None:
    line = again(["tune", "a model, ü.onnx", "--json", "--fresh"])
    words = shlex.split(line)
    assert words[-2:] == ["tune", "a model, ü.onnx"]


def test_without_the_command_on_the_path_it_names_python(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    assert again(["tune", "m.onnx"]).startswith(f"{sys.executable} -m octavo tune")
