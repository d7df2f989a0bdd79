"""A result's folder: the model and its manifest, written as a whole or not at all."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from octavo.core.contract.adapter import Candidate
from octavo.core.errors import ConfigError, StoreError, raised_as
from octavo.core.system.textfiles import absolute
from octavo.core.values.json_form import without_infinities

MANIFEST = "octavo.json"
MODEL = "model"
FORMAT = 1

_ALWAYS = ("octavo", "numpy", "torch", "onnx", "onnxruntime", "optuna")
"""Distributions whose versions are recorded where they are installed."""

_BESIDE = {
    "ai_edge_litert": "ai-edge-litert",
    "onnx_ir": "onnx-ir",
    "onnxscript": "onnxscript",
    "openvino": "openvino",
    "peft": "peft",
    "safetensors": "safetensors",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
    "torchvision": "torchvision",
    "transformers": "transformers",
}
"""Modules whose versions are recorded where the run has imported them, and what they are in."""


def check_target(folder: Path) -> Path:
    """Return the absolute path of a folder that a result may be saved to.

    Raises:
        ConfigError: If it exists and is no octavo result, or could not be made.
    """
    folder = absolute(folder, "a result's folder")
    if folder.exists() and not _may_be_replaced(folder):
        raise ConfigError(
            f"{folder} exists and is no octavo result; choose another folder or empty it"
        )
    there = next(p for p in folder.parents if p.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ConfigError(
            f"{folder} cannot be written: {there} is no writable folder; choose another"
        )
    return folder


def _may_be_replaced(there: Path) -> bool:
    """Return whether what is at a path is an earlier result, or an empty folder."""
    if (there / MANIFEST).is_file():
        return True
    return there.is_dir() and not any(there.iterdir())


def save_candidate(
    candidate: Candidate, folder: Path, facts: Mapping[str, Any]
) -> Path:
    """Write a candidate with its manifest beside the target, then put it in place.

    Raises:
        ConfigError: If the folder is no place for it.
        StoreError: If it cannot be written: a full disk, a folder that is gone.
    """
    folder = check_target(folder)
    with raised_as(StoreError, f"the result cannot be written to {folder}"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
        try:
            _write(candidate, fresh, facts)
            _put_in_place(fresh, folder)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
    return folder


def _write(candidate: Candidate, folder: Path, facts: Mapping[str, Any]) -> None:
    (folder / MODEL).mkdir()
    candidate.save(folder / MODEL)
    manifest = {
        "format": FORMAT,
        "octavo": version("octavo"),
        "backend": candidate.recipe.adapter,
        "recipe": candidate.recipe.to_json(),
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "environment": environment(),
        **facts,
    }
    text = json.dumps(without_infinities(manifest), indent=1)
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    # mkdtemp lets nobody but the owner read; a result is a folder like any other.
    folder.chmod(0o755)


def _put_in_place(fresh: Path, folder: Path) -> None:
    """Rename a whole result to its place; what was there is deleted after it."""
    if not folder.exists():
        fresh.rename(folder)
        return
    old = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-old-"))
    folder.rename(old / "was")
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def environment() -> dict[str, str]:
    """Return versions and processor, as a result records them."""
    found = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.system(),
    }
    in_use = [name for module, name in _BESIDE.items() if module in sys.modules]
    for name in (*_ALWAYS, *in_use):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
