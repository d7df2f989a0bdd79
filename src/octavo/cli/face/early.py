"""What can be checked before data are read and a model is opened: names, and files that are there.

A run reads data for minutes at times; a typo must not wait for that.
"""

from __future__ import annotations

from pathlib import Path

from octavo.core.contract.plugins import PluginHost
from octavo.core.errors import ConfigError
from octavo.core.opening.backends import asked_backends
from octavo.core.opening.config import TuningConfig
from octavo.core.opening.opening import plugin_host
from octavo.core.opening.rule_schemes import read_schemes
from octavo.core.storage.stores import is_url
from octavo.core.system.textfiles import absolute
from octavo.core.tuning.asked import build_objectives

from .failures import MissingFile


def existing(path: str | Path, what: str, remedy: str) -> Path:
    """Return the absolute path of something that is there and can be read.

    Args:
        path: As it was given.
        what: What it is, for the message: ``--data``, ``the configuration``.
        remedy: What to give instead.

    Raises:
        MissingFile: If nothing is there.
        ConfigError: If it may not be read.
    """
    found = absolute(path, what)
    if not found.exists():
        raise MissingFile(f"{what}: {path} does not exist; {remedy}")
    try:
        # Asking is not enough: an administrator is told that everything can be read.
        if found.is_dir():
            next(found.iterdir(), None)
        else:
            found.open("rb").close()
    except OSError as error:
        raise ConfigError(f"{what}: {path} cannot be read: {error.strerror}") from error
    return found


def check_storage(storage: str | None) -> None:
    """Raise where a history cannot be what ``--storage`` names.

    Raises:
        ConfigError: If it is a folder.
    """
    if storage is None or is_url(storage):
        return
    path = absolute(storage, "--storage")
    if path.is_dir():
        raise ConfigError(
            f"--storage: {storage} is a folder; give a file, for example "
            f"{Path(storage) / 'history.db'}"
        )


def check_parts(settings: TuningConfig) -> PluginHost:
    """Return the plugins of a configuration whose strategy, criterion, objectives and backends are
    there, with settings that they take.

    Raises:
        UnknownPart: With the nearest names.
        ConfigError: If a setting of a part is unknown or malformed.
    """
    host = plugin_host(settings)
    host.read("strategies", settings.strategy)
    settings.criterion(host)
    build_objectives(settings.objective.minimise, host)
    asked_backends(settings.backends or (), host, settings.baseline)
    read_schemes(settings.rules, host)
    return host
