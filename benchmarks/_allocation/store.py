"""Results in a file, one cell after the other, so that a run that was stopped goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from octavo.core.errors import ConfigError

Cell = dict[str, Any]
"""Of a method at a budget: ``allocation``, ``used``, ``note``, ``seconds``, ``judged`` by rounding,
``again`` (whether a second process gave the same)."""


class Store:
    """Cells by (axis, budget, method), written after each change.

    Args:
        path: A JSON file; None keeps nothing.
        settings: What the cells depend on. A file of others is refused.

    Raises:
        ConfigError: If the file holds cells of other settings.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any]) -> None:
        self._path = path
        self._settings = dict(settings)
        self.cells: dict[str, Cell] = {}
        if path is not None and path.exists():
            held = json.loads(path.read_text())
            if held["settings"] != self._settings:
                raise ConfigError(
                    f"{path} holds results of {held['settings']}, and these are of "
                    f"{self._settings}; give another --out"
                )
            self.cells = held["cells"]

    def cell(self, axis: str, budget: float, method: str) -> Cell:
        """Return a cell, a new one where there is none; :meth:`save` keeps what it is given."""
        return self.cells.setdefault(key(axis, budget, method), {})

    def save(self) -> None:
        """Write all cells; a reader never sees half of them."""
        if self._path is None:
            return
        whole = {"settings": self._settings, "cells": self.cells}
        beside = self._path.with_suffix(".part")
        beside.write_text(json.dumps(whole, indent=1))
        beside.replace(self._path)


def key(axis: str, budget: float, method: str) -> str:
    """Return the name of a cell."""
    return f"{axis} {budget:g} {method}"
