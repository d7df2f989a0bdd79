"""Durations as they are written: ``90``, ``90s``, ``10min``, ``2h``."""

from __future__ import annotations

import math
import re
import threading

from octavo.core.errors import ConfigError, shown

_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|sec|min|m|h|d)?\s*")
_SECONDS = {
    "ms": 1e-3,
    None: 1.0,
    "s": 1.0,
    "sec": 1.0,
    "min": 60.0,
    "m": 60.0,
    "h": 3600.0,
    "d": 86400.0,
}


def seconds(value: str | float | None) -> float | None:
    """Read a duration: a number of seconds, or text such as ``10min``, ``2h``, ``500ms``.

    Raises:
        ConfigError: If it is neither, negative, or longer than a timer can run.
    """
    if value is None:
        return None
    if isinstance(value, str):
        found = _DURATION.fullmatch(value)
        if not found:
            raise ConfigError(
                f"{shown(value)} is no duration; write 90, '90s', '10min' or '2h'"
            )
        length = float(found[1]) * _SECONDS[found[2]]
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        # An integer of thousands of digits is no float; it is too long in any case.
        length = float(value) if value <= threading.TIMEOUT_MAX else math.inf
    else:
        raise ConfigError(
            f"a {type(value).__name__} is no duration; write 90, '90s', '10min' or '2h'"
        )
    if length < 0:
        raise ConfigError(f"a duration cannot be negative: {value}")
    if not length <= threading.TIMEOUT_MAX:
        raise ConfigError(
            f"{shown(value)} is no duration that a timer can run: leave it out (None) for no limit"
        )
    return length
