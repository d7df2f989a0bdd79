"""The documentation's code runs, and its links lead somewhere."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from octavo.cli import app
from octavo.core.opening.config import TuningConfig

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def blocks(page: Path, language: str = "python") -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_to_files_lead_to_files(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_python_in_the_pages_is_python(page: Path) -> None:
    for block in blocks(page):
        compile(block, page.name, "exec")


def test_the_code_of_the_numpy_page_runs(tmp_path: Path) -> None:
    (code,) = blocks(ROOT / "docs" / "backends" / "numpy.md")
    assert "(16, 10)" in run(tmp_path, "-W", "ignore", "-c", code)


def test_the_loop_of_the_strategies_page_runs(tmp_path: Path) -> None:
    (code,) = [
        b for b in blocks(ROOT / "docs" / "strategies.md") if "octavo.prepare(" in b
    ]
    assert "True" in run(tmp_path, "-W", "ignore", "-c", code).splitlines()[-1]


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plugin of docs/plugins.md, installed as pip would: its files and its entry point on the
    path."""
    folder = tmp_path_factory.mktemp("site")
    for block in blocks(ROOT / "docs" / "plugins.md"):
        if named := re.match(r"# (\S+\.py)\n", block):
            path = folder / named[1]
            path.parent.mkdir(exist_ok=True)
            path.write_text(block)
    about = folder / "octavo_mine-0.1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: octavo-mine\nVersion: 0.1\n"
    )
    (about / "entry_points.txt").write_text("[octavo]\nmine = octavo_mine\n")
    (folder / "tune.toml").write_text(
        next(
            b
            for b in blocks(ROOT / "docs" / "plugins.md", "toml")
            if b.startswith("# tune.toml")
        )
    )
    return folder


def run(folder: Path, *command: str) -> str:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT / "src"), str(ROOT)]),
        "OCTAVO_HOME": str(folder / "home"),
    }
    done = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_plugin_of_the_page_is_found(stranger: Path) -> None:
    found = json.loads(run(stranger, "-m", "octavo", "plugins", "--json"))
    assert {
        "name": "mine",
        "origin": "octavo-mine 0.1",
        "loaded": True,
        "reason": "",
    } in found["plugins"]
    assert "sigma" in found["parts"]["calibrators"]
    assert "coin" in found["parts"]["strategies"]
    assert (
        "strategies.coin"
        in json.loads(run(stranger, "-m", "octavo", "schema"))["$defs"]
    )
    hidden = json.loads(
        run(stranger, "-m", "octavo", "plugins", "--json", "--no-autoload")
    )
    assert "sigma" not in hidden["parts"]["calibrators"]


def test_the_plugin_of_the_page_tunes_a_model(stranger: Path) -> None:
    code = """
import numpy as np, octavo
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier
x, y = load_digits(return_X_y=True)
x = (x / 16).astype("float32")
net = MLPClassifier((32,), max_iter=40, random_state=0).fit(x[:1000], y[:1000])
def accuracy(model):
    return float((np.asarray(model(x[1000:])).argmax(1) == y[1000:]).mean())
coin = {"kind": "coin", "recipes": 4}
result = octavo.autotune(net, accuracy, x[:128], "tune.toml", strategy=coin, tolerance=0.05)
assert result.goal_met, result.reason
schemes = [s for t in result.trials for s in t.recipe.schemes.values()]
used = {s.calibrator.kind for s in schemes if s.mode == "static"}
print(len(result.trials), *sorted(used))
"""
    trials, *calibrators = run(stranger, "-W", "ignore", "-c", code).split()
    assert trials == "4"
    assert "sigma" in calibrators


def test_the_plugin_of_the_page_passes_the_kit(stranger: Path) -> None:
    assert "passed" in run(
        stranger, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_mine.py"
    )


def test_the_settings_of_the_pages_are_settings() -> None:
    pages = [b for page in PAGES for b in blocks(page, "toml") if "[project" not in b]
    assert len(pages) >= 4
    for block in pages:
        TuningConfig.read(tomllib.loads(block))


def test_every_command_is_in_the_page() -> None:
    page = (ROOT / "docs" / "command-line.md").read_text()
    for command in app.registered_commands:
        assert f"octavo {command.name}" in page
