"""Recipes from files: of a saved result, or written by themselves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from octavo.core.contract.plugins import PluginHost
from octavo.core.errors import ConfigError, said
from octavo.core.opening.config import TuningConfig
from octavo.core.opening.grammar.named import NamedScheme, is_scheme, read_named
from octavo.core.system.log import remark
from octavo.core.system.textfiles import read_text
from octavo.core.values.recipe import Recipe

from .result import MANIFEST, read_manifest

Scheme = NamedScheme | Recipe | TuningConfig | Mapping[str, Any]
"""What tells how a model is quantized: names, or each op's scheme, or rules."""

FILES = (".json", ".toml", ".yaml", ".yml")
"""How a recipe's or a configuration's file ends."""


def read_scheme(scheme: str | Path, host: PluginHost | None = None) -> Scheme:
    """Return what a scheme given as text or path names.

    Args:
        scheme: A named scheme (``format[+method...]``); the folder of a saved result, its manifest,
            a JSON file of a recipe; or a configuration.
        host: Knows the methods; None takes those that are installed.

    Returns:
        The named scheme; else the recipe or configuration of a file or folder. A name wins over a
        file of that name, which ``./NAME`` means, and a remark says so.

    Raises:
        ConfigError: If a scheme is unknown, cannot be read or contradicts itself; if the file is no
            recipe and no configuration, or a path is not there.
    """
    host = host or PluginHost()
    path = Path(scheme).expanduser()
    is_text = isinstance(scheme, str)
    if is_text and is_scheme(str(scheme), host):
        _tell_of_file(path)
        return read_named(str(scheme), host)
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
    # An option may hold a dot or a slash, so that only what ends as a file does is taken for one.
    before_options = Path(str(scheme).partition("(")[0])
    looks_like_a_path = path.suffix in FILES or len(before_options.parts) > 1
    if not is_text or looks_like_a_path:
        raise ConfigError(
            f"{scheme} does not exist; give a named scheme, a saved result's folder, a recipe "
            "or a configuration"
        )
    return read_named(str(scheme), host)


def _tell_of_file(path: Path) -> None:
    """Say that a name was taken for a scheme's where a file has it too."""
    try:
        exists = path.exists()
    except OSError:
        return
    if exists:
        remark(
            f"{str(path)!r} is taken as a scheme's name; ./{path} means what lies there",
            "schemes",
        )


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


__all__ = ["FILES", "Scheme", "read_scheme"]
