"""Things named on the command line: models, and Python objects as ``module:name``."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import FunctionType
from typing import Any

from octavo.core.contract.plugins import PluginHost
from octavo.core.errors import ConfigError, nearest
from octavo.core.results.result import MANIFEST
from octavo.core.system.textfiles import absolute

from ..face.early import existing


def named_object(spec: str, option: str) -> Any:
    """Import ``module:attribute``; modules of the current folder are found.

    Raises:
        ConfigError: If it is not there.
    """
    module, _, attribute = spec.partition(":")
    if not (module and attribute):
        raise ConfigError(f"{option} {spec!r} is not of the form module:name")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{option} {spec!r}: {error}; modules are searched for in this folder and among the "
            "installed packages"
        ) from error
    for step in attribute.split("."):
        if not hasattr(found, step):
            raise ConfigError(
                f"{option} {spec!r}: {module} has no "
                f"{attribute!r}{nearest(step, [n for n in dir(found) if n[0] != '_'])}"
            )
        found = getattr(found, step)
    return found


def check_model(
    model: str, host: PluginHost | None = None, *, or_result: bool = False
) -> None:
    """Raise where a model argument names nothing, before anything is read.

    Args:
        model: As it was given.
        host: Plugins; None loads the default ones.
        or_result: Whether it may be the folder of a saved result as well.

    Raises:
        MissingFile: If it is a path at which nothing is.
        ConfigError: If it may not be read, or nothing opens a file of that name.
    """
    if _is_named(model):
        return
    remedy = (
        "give a path, or module:name of a Python object or of a function that makes one"
    )
    path = existing(model, "the model", remedy)
    if is_result(path):
        if or_result:
            return
        raise ConfigError(f"{model} is a saved result: give the float model itself")
    cards = (host or PluginHost()).adapters().values()
    if any(card.claims(path) for card in cards):
        return
    ends = sorted({end for card in cards for end in card.suffixes})
    if path.is_dir():
        what = f"{model!r} is a folder" + (" and no saved result" if or_result else "")
    else:
        what = f"no backend opens the file {model!r}"
    raise ConfigError(f"the model: {what} (backends open {', '.join(ends)}); {remedy}")


def _is_named(model: str) -> bool:
    """Return whether a model is given as ``module:name`` and not as a path."""
    is_path = absolute(model, "a model").exists()
    return ":" in model and not is_path and not model.endswith((".onnx", ".npz"))


def source(model: str) -> Any:
    """Return what a model argument names: a path, or the object of ``module:name``, or what a
    function of that name makes.

    Raises:
        ConfigError: If it names nothing.
    """
    if not absolute(model, "a model").exists():
        check_model(model)
    if not _is_named(model):
        return Path(model)
    found = named_object(model, "model")
    return found() if isinstance(found, (FunctionType, type)) else found


def is_result(path: Any) -> bool:
    """True for a folder that ``octavo tune`` or ``octavo quantize`` wrote."""
    return isinstance(path, Path) and (path / MANIFEST).is_file()


def default_folder(model: str, what: str) -> Path:
    """Return where a result goes that was given no folder: the model's name and what was done to
    it.

    Args:
        model: As it was named on the command line.
        what: Last part of the name.
    """
    stem = model.split(":")[-1] if _is_named(model) else Path(model).stem
    return Path(f"{stem}-{what}")
