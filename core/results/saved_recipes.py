"""Recipes from files: of a saved result, or written by themselves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from octavo.core.errors import ConfigError, said
from octavo.core.opening.config import TuningConfig
from octavo.core.opening.presets import PRESETS
from octavo.core.system.textfiles import read_text
from octavo.core.values.recipe import Recipe

from .result import MANIFEST, read_manifest

Scheme = str | Recipe | TuningConfig | Mapping[str, Any]


def read_scheme(scheme: str | Path) -> Scheme:
    """Return what a scheme given as text or path names.

    Args:
        scheme: A named scheme; the folder of a saved result, its manifest, a JSON file of a recipe;
            or a configuration.

    Returns:
        The recipe or configuration of a file or folder; else the name as it is.

    Raises:
        ConfigError: If the file is no recipe and no configuration, or a path is not there.
    """
    path = Path(scheme).expanduser()
    if str(scheme) in PRESETS:
        return str(scheme)
    try:
        path.stat()
    except FileNotFoundError:
        pass
    except OSError as error:  # a name that is too long, a folder that may not be read
        raise ConfigError(
            f"{str(scheme)[:80]} cannot be read: {error.strerror}; give a named scheme or a path"
        ) from error
    if path.is_dir():
        return Recipe.from_json(read_manifest(path)["recipe"])
    if path.is_file():
        return _of_json(path) if path.suffix == ".json" else TuningConfig.read(path)
    if isinstance(scheme, Path) or path.suffix or len(path.parts) > 1:
        raise ConfigError(
            f"{scheme} does not exist; give a named scheme, a saved result's folder, a recipe "
            "or a configuration"
        )
    return scheme


def _of_json(path: Path) -> Scheme:
    if path.name == MANIFEST:
        return Recipe.from_json(read_manifest(path.parent)["recipe"])
    try:
        found = json.loads(read_text(path))
    except ValueError as error:
        raise ConfigError(f"{path} is no JSON: {said(error)}") from error
    if not isinstance(found, dict):
        raise ConfigError(
            f"{path} holds a {type(found).__name__}, neither a recipe nor a configuration"
        )
    inner = found.get("recipe", found)
    if isinstance(inner, dict) and {"schemes", "ops"} <= set(inner):
        return Recipe.from_json(inner)
    return TuningConfig.read(path)


__all__ = ["read_scheme"]
