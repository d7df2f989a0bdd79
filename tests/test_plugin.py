"""``octavo.plugin``: one import for authors of plugins."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import octavo.plugin

ROOT = Path(__file__).resolve().parent.parent
FRAMEWORKS = ("torch", "onnx", "onnxruntime", "onnx_ir", "sklearn", "pytest")
OWN_IMPORT = re.compile(r"^\s*(?:from|import) (octavo\.[\w.]+)", re.MULTILINE)


@pytest.mark.parametrize("name", octavo.plugin.__all__)
def test_every_name_is_there(name: str) -> None:
    assert getattr(octavo.plugin, name) is not None
    assert name in dir(octavo.plugin)


def test_names_are_listed_once() -> None:
    assert len(set(octavo.plugin.__all__)) == len(octavo.plugin.__all__)


def test_what_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        octavo.plugin.nonsense  # type: ignore[attr-defined]


def test_importing_it_brings_no_framework_and_no_test_tool() -> None:
    code = f"""
import json, sys
import octavo.plugin
print(json.dumps(sorted(set({FRAMEWORKS!r}) & set(sys.modules))))
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def plugin_texts() -> dict[str, str]:
    """The code that a stranger would write: the page's blocks, and the distribution in
    the tests."""
    page = ROOT / "docs" / "plugins.md"
    blocks = re.findall(
        r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL
    )
    texts = {
        f"docs/plugins.md, block {index}": block for index, block in enumerate(blocks)
    }
    for path in (ROOT / "tests" / "thirdparty").rglob("*.py"):
        texts[path.name] = path.read_text()
    return texts


@pytest.mark.parametrize("where", sorted(plugin_texts()))
def test_plugins_need_nothing_else(where: str) -> None:
    assert set(OWN_IMPORT.findall(plugin_texts()[where])) <= {"octavo.plugin"}


def test_every_base_class_of_a_part_is_there() -> None:
    """What the contract asks authors to subclass, by its abstract classes."""
    from octavo.core import contract

    folder = Path(contract.__file__).parent
    abstract = {
        name
        for path in folder.glob("*.py")
        for name in re.findall(
            r"^class (\w+)\((?:ABC|Observer)\)", path.read_text(), re.MULTILINE
        )
    }
    assert abstract
    assert abstract <= set(octavo.plugin.__all__)
