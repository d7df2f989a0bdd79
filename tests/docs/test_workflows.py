"""The workflows of the public host: well formed, and they run what is there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from .pages import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))


def jobs(path: Path) -> dict[str, Any]:
    read = yaml.safe_load(path.read_text(encoding="utf-8"))
    # YAML 1.1 takes the bare word `on` for a truth value.
    assert {"name", True, "permissions", "jobs"} <= set(read)
    found: dict[str, Any] = read["jobs"]
    return found


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.name)
def test_a_workflow_is_well_formed(path: Path) -> None:
    found = jobs(path)
    for name, job in found.items():
        needed = job.get("needs", [])
        assert {needed} if isinstance(needed, str) else set(needed) <= set(found), name
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step), step
            assert re.fullmatch(r"[\w./-]+@[\w./-]+", step.get("uses", "a@b")), step


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.name)
def test_a_workflow_runs_targets_that_are_there(path: Path) -> None:
    for job in jobs(path).values():
        for step in job["steps"]:
            for target in re.findall(r"\bmake (\w+)", step.get("run", "")):
                assert target in TARGETS, target


def test_pushes_are_checked_tested_and_documented() -> None:
    ci = jobs(ROOT / ".github" / "workflows" / "ci.yml")
    run = {step.get("run", "") for job in ci.values() for step in job["steps"]}
    assert {"make check", "make docs"} <= run
    assert ci["test"]["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]
