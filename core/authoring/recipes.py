"""A recipe and its ledger as JSON, and as a file beside what a runtime reads itself."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from octavo.core.contract.candidate import Candidate
from octavo.core.errors import ConfigError, ModelError, raised_as
from octavo.core.values.json_form import canonical_json
from octavo.core.values.ledger import Applied
from octavo.core.values.recipe import Recipe

RECIPE_FILE = "octavo.recipe.json"
"""The file that :func:`write_recipe` writes."""

_FORMAT = 1


def ledger_to_json(
    ledger: Mapping[str, Applied], recipe: Recipe | None = None
) -> dict[str, Any]:
    """Return a ledger as JSON to be kept beside its recipe.

    Args:
        ledger: Op name -> what became of it.
        recipe: Where it is given, lines that ask for something else than it does are written whole.

    Returns:
        Op name -> (realization, reason, applied scheme or None where it is the requested one).
    """
    rows: dict[str, Any] = {}
    for name, line in ledger.items():
        is_as_asked = recipe is None or line.requested == recipe[name]
        rows[name] = line.to_row() if is_as_asked else line.to_json()
    return rows


def ledger_from_json(recipe: Recipe, raw: Mapping[str, Any]) -> dict[str, Applied]:
    """Read what :func:`ledger_to_json` wrote; lines written whole are taken, too.

    Args:
        recipe: The ledger's.
        raw: As it was written.

    Raises:
        ModelError: If a line is none.
    """
    ledger: dict[str, Applied] = {}
    for name, row in raw.items():
        with _damaged(f"the ledger's line of {name!r} is damaged"):
            if isinstance(row, Mapping):
                ledger[name] = Applied.from_json(row)
            else:
                ledger[name] = Applied.from_row(recipe[name], row)
    return ledger


def write_recipe(folder: Path, candidate: Candidate) -> None:
    """Write a candidate's recipe and ledger beside the runtime's own files.

    Args:
        folder: Where ``octavo.recipe.json`` goes.
        candidate: Reading its ledger may compile it.
    """
    recipe = candidate.recipe
    content = {
        "format": _FORMAT,
        "recipe": recipe.to_json(),
        "ledger": ledger_to_json(candidate.ledger, recipe),
    }
    path = Path(folder) / RECIPE_FILE
    path.write_text(canonical_json(content), encoding="utf-8")


def read_recipe(folder: Path) -> tuple[Recipe, dict[str, Applied]]:
    """Read what :func:`write_recipe` wrote.

    Args:
        folder: Where ``octavo.recipe.json`` stands; or one of the files beside it.

    Raises:
        ModelError: If it is missing, damaged, or of a later version of octavo.
    """
    folder = Path(folder)
    path = (folder.parent if folder.is_file() else folder) / RECIPE_FILE
    if not path.is_file():
        raise ModelError(
            f"{path} is missing: it was not saved by octavo, or was moved without this file; "
            "open the model as a float model instead"
        )
    with _damaged(f"{path} is damaged"):
        raw = json.loads(path.read_text(encoding="utf-8"))
        found = raw["format"]
        if found != _FORMAT:
            raise ModelError(
                f"{path} has format {found!r}, and this octavo reads {_FORMAT}; update octavo"
            )
        recipe = Recipe.from_json(raw["recipe"])
        return recipe, ledger_from_json(recipe, raw["ledger"])


@contextmanager
def _damaged(what: str) -> Iterator[None]:
    """Raise what the block raises as a ModelError, what octavo's own readers raise too."""
    remedy = "save the model again"
    with raised_as(ModelError, what, remedy):
        try:
            yield
        except ConfigError as error:
            raise ModelError(f"{what}: {error}; {remedy}") from error
