"""Models that something was learned for, on disk beside the history: nothing is learned twice.

A recovery costs minutes or days, so its model outlives a crash, and the winner's is at hand when it
is timed again, confirmed and handed back.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from octavo.core.contract.adapter import Candidate, Opened
from octavo.core.contract.plugins import PluginHost
from octavo.core.errors import OctavoError, said
from octavo.core.quantizing.recovering import Kept
from octavo.core.results.loading import load_candidate, read_manifest
from octavo.core.results.saving import MANIFEST, save_candidate
from octavo.core.storage.aside import RECOVERED
from octavo.core.storage.stores import home, is_url, sqlite_path
from octavo.core.values.ledger import Applied
from octavo.core.values.recipe import Recipe

_SECONDS, _LEDGER = "recover_seconds", "recover_ledger"


class KeptModels:
    """The recovered models of one backend of a run.

    Args:
        folder: Where they lie, one folder a recipe; it need not exist.
        opened: The backend.
        model: The float model, which some backends need to load what they saved; None where the
            backend opened another form of it.
        host: Plugins.
        tell: Told what the user should know.
    """

    def __init__(
        self,
        folder: Path,
        opened: Opened,
        model: Any,
        host: PluginHost,
        tell: Callable[[str], None],
    ) -> None:
        self._folder = folder
        self._opened = opened
        self._model = model
        self._host = host
        self._tell = tell

    def load(self, recipe: Recipe) -> Kept | None:
        """Return the model of a recipe, with what it cost; None where it was not kept."""
        place = self._place(recipe)
        if not (place / MANIFEST).is_file():
            return None
        try:
            manifest = read_manifest(place)
            candidate = load_candidate(place, self._model, host=self._host)
            rows = manifest[_LEDGER]
            ledger = {op: Applied.from_row(recipe[op], row) for op, row in rows.items()}
            seconds = float(manifest[_SECONDS])
        except (OctavoError, KeyError, TypeError, ValueError) as error:
            self._tell(
                f"the recovered model in {place} cannot be read and is learned again: {said(error)}"
            )
            return None
        return Kept(candidate.with_ledger(ledger, recipe), seconds)

    def save(self, candidate: Candidate, seconds: float) -> None:
        """Keep a model.

        Args:
            candidate: It.
            seconds: What it cost to learn.
        """
        settings = self._opened.settings
        facts = {
            "backend_settings": settings.to_save() if settings else {},
            _SECONDS: seconds,
            _LEDGER: {op: line.to_row() for op, line in candidate.ledger.items()},
        }
        try:
            save_candidate(candidate, self._place(candidate.recipe), facts)
        except OctavoError as error:
            self._tell(
                f"a recovered model cannot be kept, and is learned again if it is needed: "
                f"{said(error)}"
            )

    def forget(self, recipe: Recipe) -> None:
        """Delete a model that is of no further use."""
        shutil.rmtree(self._place(recipe), ignore_errors=True)

    def _place(self, recipe: Recipe) -> Path:
        return self._folder / recipe.digest


def place_of(location: str, study: str) -> Path:
    """Return where a history's recovered models lie.

    Beside a history file; in octavo's own folder for a database on a server.

    Args:
        location: The history's.
        study: Its name in it.
    """
    if is_url(location) and not location.startswith("sqlite"):
        return home() / "recovered" / _short(f"{location} {study}")
    path = Path(sqlite_path(location)).expanduser().absolute()
    # The file may be renamed with what lies beside it: its name is no part of the place.
    return path.with_name(f"{path.name}{RECOVERED}") / _short(study)


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


__all__ = ["KeptModels", "place_of"]
