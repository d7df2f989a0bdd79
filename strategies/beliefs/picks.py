"""Recipes as tuples of indices: which of its choices each tunable unit takes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import OpScheme
from octavo.core.values.space import TuningSpace

Picks = tuple[int, ...]


def total(rows: Sequence[np.ndarray], picks: Sequence[int]) -> float:
    """Return what choices add up to, given one row of figures for each unit."""
    return sum(float(row[index]) for row, index in zip(rows, picks, strict=True))


def chosen(space: TuningSpace, picks: Sequence[int]) -> dict[str, OpScheme]:
    """Return the scheme that each tunable unit takes, by its name."""
    units = zip(space.tunable, picks, strict=True)
    return {unit.name: unit.choices[index] for unit, index in units}


def picks_of(space: TuningSpace, recipe: Recipe) -> Picks:
    """Return the choices that a recipe of the space stands for."""
    return tuple(unit.choices.index(recipe[unit.ops[0]]) for unit in space.tunable)


def weight_bytes(space: TuningSpace) -> list[np.ndarray]:
    """Return for each tunable unit the bytes of its weights under each choice."""
    return [
        np.array([unit.weight_bytes(s) for s in unit.choices]) for unit in space.tunable
    ]
