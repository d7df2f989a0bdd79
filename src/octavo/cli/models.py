"""Things named on the command line: models, and Python objects as ``module:name``."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import FunctionType
from typing import Any

from octavo.core.errors import ConfigError, ModelError, nearest
from octavo.core.results.result import MANIFEST
from octavo.core.system.textfiles import absolute


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


def source(model: str) -> Any:
    """Return what a model argument names: a path, or the object of ``module:name``, or what a
    function of that name makes.

    Raises:
        ModelError: If it names nothing.
    """
    if absolute(model, "a model").exists():
        return Path(model)
    if ":" in model and not model.endswith((".onnx", ".npz")):
        found = named_object(model, "model")
        return found() if isinstance(found, (FunctionType, type)) else found
    raise ModelError(
        f"{model} does not exist; give a path, or module:name of a Python object or of a function "
        "that makes one"
    )


def is_result(path: Any) -> bool:
    """True for a folder that ``octavo tune`` or ``octavo quantize`` wrote."""
    return isinstance(path, Path) and (path / MANIFEST).is_file()


def default_folder(model: str, opened: Any, what: str) -> Path:
    """Return where a result goes that was given no folder: the model's name and what was done to
    it.

    Args:
        model: As it was named on the command line.
        opened: What :func:`source` made of it.
        what: Last part of the name.
    """
    stem = Path(model).stem if isinstance(opened, Path) else model.split(":")[-1]
    return Path(f"{stem}-{what}")
