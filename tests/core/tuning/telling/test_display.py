"""What a run shows: lines in a pipe, a moving line on a terminal, one picture in a notebook."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import octavo
from octavo.core.errors import ConfigError
from octavo.core.sensitivity.output_distance import OutputDistance
from octavo.core.tuning.telling import surfaces, wanted
from octavo.core.tuning.telling.lines import space_told, step, time_left
from octavo.core.values.recipe import Recipe
from tests import tiny

ROOT = Path(__file__).parents[4]

RUN = """
import sys, time; sys.path.insert(0, {root!r})
from octavo.core.sensitivity.output_distance import OutputDistance
from tests import tiny
import octavo
def slow(self, recipe):
    time.sleep(0.15)
    return 1.0
OutputDistance.of = slow
result = octavo.autotune(
    tiny.chain(), tiny.nearness, tiny.calibration(), strategy="prefix", max_trials=3,
    accuracy=dict(guard=False, tolerance=1e-9), minimise="size", host=tiny.host(),
    storage={storage!r}, {more}
)
print("done", len(result.trials))
"""


def program(folder: Path, more: str = "") -> str:
    return RUN.format(root=str(ROOT), storage=str(folder / "h.db"), more=more)


def tune(storage: Path, **settings: Any) -> octavo.Result:
    return octavo.autotune(
        tiny.chain(),
        tiny.nearness,
        tiny.calibration(),
        **{
            "storage": storage,
            "minimise": "size",
            "host": tiny.host(),
            "max_trials": 2,
            "strategy": "random",
            **settings,
        },
    )


def test_in_a_pipe_a_line_comes_while_probes_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def slow(self: Any, recipe: Any) -> float:
        time.sleep(0.2)
        return 1.0

    monkeypatch.setattr(OutputDistance, "of", slow)
    display = octavo.ProgressDisplay(every=0.4)
    tune(
        tmp_path / "h.db",
        strategy="prefix",
        tolerance=1e-9,
        max_trials=2,
        callbacks=[display],
    )
    said = capsys.readouterr().err.splitlines()
    standing = [line for line in said if re.match(r"sensitivities \d+ of \d+", line)]
    assert len(standing) >= 2
    assert all("left" in line for line in standing)
    assert any(re.search(r"\d+ probes beside the evaluations", line) for line in said)
    assert re.search(
        r"ended: .*; \d+ probes of sensitivities were run", "\n".join(said)
    )


def test_no_silence_is_longer_than_ten_seconds() -> None:
    said: list[float] = []
    shown = surfaces.Lines(lambda: surfaces.Status("calibration", None, "1 s", "left"))
    shown.say = lambda line: said.append(time.monotonic())  # type: ignore[method-assign]
    assert shown.beat() <= 10.0
    shown._said -= 9.0
    assert shown.beat() <= 10.0
    assert len(said) == 1


def test_nothing_goes_on_after_a_run_that_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(model: Any) -> float:
        raise RuntimeError("no score today")

    import threading

    with pytest.raises(octavo.OctavoError, match="no score today"):
        octavo.autotune(
            tiny.chain(),
            fails,
            tiny.calibration(),
            storage=tmp_path / "h.db",
            host=tiny.host(),
            progress=True,
        )
    assert not [t for t in threading.enumerate() if t.name == "octavo progress"]


def test_scripts_in_a_pipe_are_quiet_unless_they_ask(tmp_path: Path) -> None:
    def said(more: str, name: str) -> tuple[str, str]:
        folder = tmp_path / name
        folder.mkdir()
        done = subprocess.run(
            [sys.executable, "-c", program(folder, more)],
            capture_output=True,
            text=True,
            timeout=100,
        )
        return done.stdout, done.stderr

    out, err = said("", "quiet")
    assert out.startswith("done")
    assert "trial 1" not in err and "goal:" not in err
    out, err = said("progress=True", "asked")
    assert out.startswith("done")
    assert "goal: score" in err and "trial 1 on tiny" in err


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_on_a_terminal_the_moving_line_names_the_phases(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80"}
    child = subprocess.Popen(
        [sys.executable, "-c", program(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env=environment,
    )
    os.close(theirs)
    raw = b""
    while True:
        try:
            read = os.read(ours, 65536)
        except OSError:
            break
        if not read:
            break
        raw += read
    assert child.wait(60) == 0
    assert child.stdout is not None
    # What a program prints into a file or pipe does not end up on the terminal.
    assert child.stdout.read().startswith(b"done")
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", raw.decode())
    for phase in ("opening", "sensitivities", "trial 1 on tiny"):
        assert phase in shown, shown
    counts = set(re.findall(r"sensitivities (\d+) of \d+ on tiny", shown))
    assert len(counts) >= 3
    assert "left" in shown


def test_a_notebook_shows_a_run_in_one_picture(tmp_path: Path) -> None:
    pytest.importorskip("ipykernel")
    from jupyter_client.manager import KernelManager

    manager = KernelManager(
        kernel_cmd=[
            sys.executable,
            "-m",
            "ipykernel_launcher",
            "-f",
            "{connection_file}",
        ]
    )
    manager.start_kernel()
    client = manager.client()
    pictures: list[dict[str, Any]] = []
    printed: list[str] = []

    def keep(message: dict[str, Any]) -> None:
        if message["msg_type"] in ("display_data", "update_display_data"):
            pictures.append({"kind": message["msg_type"], **message["content"]})
        if message["msg_type"] in ("stream", "error"):
            printed.append(str(message["content"]))

    try:
        client.start_channels()
        client.wait_for_ready(timeout=60)
        client.execute_interactive(
            program(tmp_path), timeout=100, output_hook=keep, store_history=False
        )
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert pictures, printed
    kinds = [picture["kind"] for picture in pictures]
    assert kinds[0] == "display_data"
    assert set(kinds[1:]) == {"update_display_data"}
    drawn = [picture["data"]["text/html"] for picture in pictures]
    assert any("<progress" in html and "sensitivities" in html for html in drawn)
    last = pictures[-1]["data"]
    assert "<progress" not in last["text/html"]
    assert "trial 1 on tiny" in last["text/html"]
    assert "ended: " in last["text/plain"]


def test_who_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def kinds(callbacks: Any, progress: bool | None) -> list[str]:
        told = wanted.listeners(callbacks, progress)
        return [type(each._inner).__name__ for each in told]  # type: ignore[attr-defined]

    own = octavo.Progress()
    monkeypatch.setattr(wanted, "on_terminal", lambda: False)
    assert kinds((), None) == []
    assert kinds((), True) == ["ProgressDisplay"]
    monkeypatch.setattr(wanted, "on_terminal", lambda: True)
    assert kinds((), None) == ["ProgressDisplay"]
    assert kinds((), False) == []
    assert kinds([own], None) == ["Progress"]
    assert kinds(own, True) == ["Progress", "ProgressDisplay"]
    assert kinds([octavo.ProgressDisplay()], True) == ["ProgressDisplay"]
    with pytest.raises(ConfigError, match="progress is True, False or None"):
        wanted.listeners((), "yes")  # type: ignore[arg-type]


def test_the_words() -> None:
    phase = octavo.Phase("sensitivities", 120, 456, 300.0, "on onnx", item_left=2.0)
    assert step(phase, None) == "sensitivities 120 of 456 on onnx"
    assert time_left(phase, 60.0) == "about 5 min left"
    assert time_left(octavo.Phase("opening"), 3.0) == "time left unknown"
    last = octavo.Phase("trials", 3, 4, 0.2, item_left=0.2)
    assert time_left(last, 9.0) == "about 1 s left"
    recipe = Recipe({}, (), "onnx")
    assert step(last, (4, recipe)) == "trial 4 of at most 4 on onnx"
    assert step(last, None) == "trials 3 of at most 4"
    assert space_told(1, "1 op") == "one recipe in the space"
    assert space_told(625, "4 ops with up to 5 choices") == "625 recipes in the space"
    huge = space_told(5**200, "200 ops with up to 5 choices")
    assert huge == "200 ops with up to 5 choices"


def test_the_command_line_s_name_for_it_stays() -> None:
    from octavo.cli.progress import Show

    assert Show is octavo.ProgressDisplay
