"""What recipes scored, in the file of sensitivities: runs with other goals start from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from octavo.core.errors import StoreError, raised_as
from octavo.core.system.textfiles import read_text, write_text
from octavo.core.values.recipe import Recipe

MOST = 64
"""Recipes that are kept, the latest ones."""

SAME = 1e-5
"""Share of a score by which other batch sizes and thread counts move it."""

Scores = Mapping[str, float]
"""By metric."""

Measured = dict[str, tuple[Recipe, Scores]]
"""By digest: a recipe and its scores."""


def read_trials(path: Path, baseline: Scores) -> Measured:
    """Return by digest the recipes of a file and their scores.

    Args:
        path: The file, beside whose sensitivities they stand.
        baseline: The float model's scores now. Where they were others then, the score function or
            its data were others, and nothing is returned.

    Raises:
        StoreError: If they are damaged.
    """
    if not path.exists():
        return {}
    fault = f"{path} holds damaged trials; delete it, or name another file"
    with raised_as(StoreError, fault):
        raw: Any = json.loads(read_text(path)).get("measured")
        if raw is None or not _same(raw["baseline"], baseline):
            return {}
        found: Measured = {}
        for row in raw["trials"]:
            recipe = Recipe.from_json(row["recipe"])
            metrics = {
                str(name): float(value) for name, value in row["metrics"].items()
            }
            found[recipe.digest] = (recipe, metrics)
        return found


def write_trials(path: Path, baseline: Scores, measured: Measured) -> None:
    """Add recipes and their scores to a file of sensitivities.

    Args:
        path: The file, which is there.
        baseline: The float model's scores.
        measured: All that is kept, the latest last.

    Raises:
        StoreError: If the file cannot be read or written.
    """
    latest = list(measured.values())[-MOST:]
    rows = [
        {"recipe": recipe.to_json(), "metrics": dict(metrics)}
        for recipe, metrics in latest
    ]
    with raised_as(StoreError, f"{path} cannot be written"):
        raw = json.loads(read_text(path))
        raw["measured"] = {"baseline": dict(baseline), "trials": rows}
        write_text(path, json.dumps(raw, indent=1))


def _same(then: Scores, now: Scores) -> bool:
    if set(then) != set(now):
        return False
    return all(
        abs(then[name] - now[name]) <= SAME * max(abs(then[name]), abs(now[name]))
        for name in now
    )
