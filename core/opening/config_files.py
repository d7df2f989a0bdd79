"""Files of settings: TOML, YAML and JSON."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from octavo.core.errors import ConfigError
from octavo.core.system.textfiles import read_text


def parse_file(path: Path) -> dict[str, Any]:
    """Return the table of settings that a file holds, by its suffix: .toml, .yaml, .yml or .json.

    Raises:
        ConfigError: If it cannot be read, or holds anything else.
    """
    text = read_text(path)
    try:
        if path.suffix == ".toml":
            found: Any = tomllib.loads(text)
        elif path.suffix in (".yaml", ".yml"):
            import yaml

            found = yaml.safe_load(text)
        elif path.suffix == ".json":
            found = json.loads(text)
        else:
            raise ConfigError(
                f"{path}: unknown kind of configuration {path.suffix!r}; use .toml, .yaml or .json"
            )
    except ConfigError:
        raise
    except Exception as error:  # each parser has its own family
        raise ConfigError(f"{path} cannot be parsed: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(
            f"{path} holds a {type(found).__name__}, not a table of settings"
        )
    return found
