"""The plugin of docs/plugins.md, installed beside octavo's wheel."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .conftest import Reader
from .pages import DOCS, blocks

ABOUT = "octavo_mine-0.1.dist-info"

TUNE = """
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

TUNE_SLATE = """
import numpy as np, octavo
from test_slate import NET, random
x = random(64, 32)
def likeness(model):
    y = model(x)
    return -float(np.linalg.norm(y - float_outputs) / np.linalg.norm(float_outputs))
from octavo_slate.runtime import Compiled
float_outputs = Compiled(NET).run(x)[0]
result = octavo.quantize_model(NET, "int8-static+gptq", [(x,)])
result.save("slate-result")
again = octavo.load("slate-result")
print(*(line.realization for line in result.ledger.values() if not line.applied.is_float),
      np.array_equal(again(x), result.model(x)) and likeness(again) > -0.05)
"""


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the page's files, and what pip would write beside them."""
    folder = tmp_path_factory.mktemp("plugin")
    files = {
        block.file: block.code for block in blocks(DOCS / "plugins.md") if block.file
    }
    files[f"{ABOUT}/METADATA"] = (
        "Metadata-Version: 2.1\nName: octavo-mine\nVersion: 0.1\n"
    )
    files[f"{ABOUT}/entry_points.txt"] = (
        "[octavo]\nmine = octavo_mine\nslate = octavo_slate\n"
    )
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def test_it_is_found(reader: Reader, plugin: Path) -> None:
    listed = json.loads(reader.python(plugin, "-m", "octavo", "plugins", "--json"))
    mine = {"name": "mine", "origin": "octavo-mine 0.1", "loaded": True, "reason": ""}
    assert any(mine.items() <= found.items() for found in listed["plugins"])
    assert "sigma" in listed["parts"]["calibrators"]
    assert "coin" in listed["parts"]["strategies"]
    schema = json.loads(reader.python(plugin, "-m", "octavo", "schema"))
    assert "strategies.coin" in schema["$defs"]
    options = ("plugins", "--json", "--no-autoload")
    hidden = json.loads(reader.python(plugin, "-m", "octavo", *options))
    assert "sigma" not in hidden["parts"]["calibrators"]


def test_it_tunes_a_model(reader: Reader, plugin: Path) -> None:
    (plugin / "use.py").write_text(TUNE, encoding="utf-8")
    shown = reader.python(plugin, "-W", "ignore", "use.py").splitlines()[-1]
    trials, *calibrators = shown.split()
    assert trials == "4"
    assert "sigma" in calibrators


def test_it_passes_the_kit(reader: Reader, plugin: Path) -> None:
    quiet = ("-q", "-p", "no:cacheprovider")
    assert "passed" in reader.python(plugin, "-m", "pytest", *quiet, "test_mine.py")


def test_its_backend_passes_the_kit(reader: Reader, plugin: Path) -> None:
    quiet = ("-q", "-p", "no:cacheprovider")
    shown = reader.python(plugin, "-m", "pytest", *quiet, "test_slate.py")
    assert "passed" in shown and "failed" not in shown


def test_its_backend_is_tuned(reader: Reader, plugin: Path) -> None:
    (plugin / "tune_slate.py").write_text(TUNE_SLATE, encoding="utf-8")
    shown = reader.python(plugin, "-W", "ignore", "tune_slate.py").splitlines()[-1]
    assert shown == "kernel kernel True"
