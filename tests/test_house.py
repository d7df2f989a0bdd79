"""The house: which way imports go, what the package weighs at import, and what a wheel holds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FRAMEWORKS = (
    "torch",
    "onnx",
    "onnxruntime",
    "onnx_ir",
    "sklearn",
    "transformers",
    "openvino",
    "ai_edge_litert",
    "tensorflow",
    "matplotlib",
    "typer",
)


def python(code: str, **environment: str) -> str:
    """Run code in a fresh interpreter, outside the checkout, and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd="/",
        env={**os.environ, **environment},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_imports_go_one_way() -> None:
    # In a process of its own: import-linter switches every logger off that is there.
    code = f"""
import os, sys
from importlinter.cli import lint_imports
os.chdir({str(ROOT)!r})
sys.exit(lint_imports(config_filename="pyproject.toml", no_cache=True))
"""
    assert "0 broken" in python(code)


def test_importing_octavo_brings_no_framework() -> None:
    code = f"""
import sys, time, json
start = time.process_time()
import octavo
# Names are looked up when they are first used.
everything = [getattr(octavo, name) for name in octavo.__all__]
took = time.process_time() - start
print(json.dumps([sorted(set({FRAMEWORKS!r}) & set(sys.modules)), took]))
"""
    found, took = json.loads(python(code))
    assert found == []
    # Half a second of the processor is the promise; one that other work shares gets room, since the
    # list above is what makes it slow.
    assert took < 2.0


def test_listing_plugins_brings_no_framework() -> None:
    code = f"""
import sys, json
from octavo.core.contract.plugins import KINDS, PluginHost
host = PluginHost(third_party=False)
names = {{kind: sorted(host.parts(kind)) for kind in KINDS}}
left_out = [i.reason for i in host.plugins() if not i.loaded]
print(json.dumps([sorted(set({FRAMEWORKS!r}) & set(sys.modules)), names, left_out]))
"""
    found, names, left_out = json.loads(python(code))
    assert found == []
    assert left_out == []
    assert {"numpy", "onnx", "torch"} <= set(names["adapters"])
    assert {"basic", "bayesian", "exhaustive"} <= set(names["strategies"])


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "build",
            "--wheel",
            "--no-isolation",
            "--outdir",
            str(out),
            str(ROOT),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("*.whl"))


def test_the_wheel_holds_the_four_folders(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("core", "adapters", "strategies"):
        kept = {
            f"octavo/{path.relative_to(ROOT).as_posix()}"
            for path in (ROOT / folder).rglob("*.py")
            if "__pycache__" not in path.parts
        }
        assert kept <= names
    assert {
        "octavo/__init__.py",
        "octavo/__main__.py",
        "octavo/py.typed",
        "octavo/plugins.toml",
    } <= names
    assert any(name.endswith(".j2") for name in names), (
        "the report's template must travel with the wheel"
    )
    strangers = {name.split("/")[0] for name in names}
    assert strangers == {
        "octavo",
        next(n for n in strangers if n.endswith(".dist-info")),
    }


def test_the_wheel_works_where_it_is_unpacked(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = """
import json, octavo
from octavo.core.contract.plugins import PluginHost
adapters = sorted(PluginHost(third_party=False).parts("adapters"))
print(json.dumps([octavo.__file__, octavo.__version__, adapters]))
"""
    where, version, adapters = json.loads(python(code, PYTHONPATH=str(tmp_path)))
    assert Path(where).is_relative_to(tmp_path)
    assert (
        version
        == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    )
    assert {"numpy", "onnx", "torch"} <= set(adapters)


def test_every_version_that_we_develop_with_is_pinned() -> None:
    pinned = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(r for rs in project["optional-dependencies"].values() for r in rs),
    ]
    bare = {
        r.split(";")[0].split("[")[0].split(">")[0].split("=")[0].strip().lower()
        for r in wanted
    }
    assert bare - {"octavo"} <= pinned
