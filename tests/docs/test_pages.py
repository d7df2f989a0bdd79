"""Every block of every page runs, or says why not."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from octavo.core.opening.config import TuningConfig

from .conftest import Reader
from .pages import LANGUAGES, PAGES, RUN, SETTINGS, Block, blocks, name_of

FOLLOW = Path(__file__).with_name("follow.py")
READERS = {"toml": tomllib.loads, "yaml": yaml.safe_load, "json": json.loads}

SLOW = (
    "README.md",
    "docs/backends/onnx.md",
    "docs/backends/pytorch.md",
    "docs/coming-from/",
    "docs/deploying.md",
    "docs/slow-or-inaccurate.md",
    "docs/training.md",
    "docs/tutorials/",
)
"""Pages, and folders of them, whose blocks take over ten seconds."""


def to_run(page: Path) -> list[Block]:
    return [b for b in blocks(page) if b.language in RUN and not b.is_fragment]


def has_settings(page: Path) -> bool:
    return any(block.language in SETTINGS for block in blocks(page))


def marked(page: Path) -> Any:
    name = name_of(page)
    is_slow = name.startswith(SLOW)
    return pytest.param(page, id=name, marks=pytest.mark.slow if is_slow else ())


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_blocks_say_what_they_are(page: Path) -> None:
    for block in blocks(page):
        assert block.language in LANGUAGES, (
            f"{block}: {block.language or 'no language'}"
        )
        assert block.comment[0] in ("", "fragment", "output"), (
            f"{block}: {block.comment}"
        )
        if block.is_fragment:
            assert block.comment[1], f"{block}: it is not said why it is a fragment"
        if block.language == "python":
            compile(block.code, str(block), "exec")


@pytest.mark.parametrize("page", [p for p in PAGES if has_settings(p)], ids=name_of)
def test_settings_are_settings(page: Path) -> None:
    for block in blocks(page):
        if block.language in SETTINGS and not block.is_fragment:
            TuningConfig.read(READERS[block.language](block.code))


@pytest.mark.parametrize("page", [marked(p) for p in PAGES if to_run(p)])
def test_a_page_can_be_followed(page: Path, reader: Reader, tmp_path: Path) -> None:
    steps = [step for block in blocks(page) if (step := step_of(block))]
    script = tmp_path / "steps.json"
    script.write_text(json.dumps(steps), encoding="utf-8")
    folder = tmp_path / "empty"
    folder.mkdir()
    reader.python(folder, "-W", "ignore", str(FOLLOW), str(script))


def step_of(block: Block) -> dict[str, str] | None:
    """Return what a reader does with a block; None for what is only read."""
    if block.is_fragment and not block.file:
        return None
    step = {"place": str(block), "code": block.code, "file": block.file}
    if block.file:
        return {**step, "act": "write"}
    if block.is_output:
        return {**step, "act": "compare"}
    return {**step, "act": block.language} if block.language in RUN else None
