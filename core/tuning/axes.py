"""A space as the parameters that dashboards of Optuna show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from octavo.core.report.names import distinct
from octavo.core.storage.axes import Axes
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import PartChoice, in_order
from octavo.core.values.space import TuningSpace, Unit

BACKEND = "backend"
TRANSFORMS = "transforms"

ELSEWHERE = "on another backend"
"""What the ops of a backend take in trials on others: so each trial has each parameter, without
which Optuna leaves it out of importances."""


@dataclass(frozen=True)
class _Choice:
    """A unit, or the transforms of a space.

    Attributes:
        backend: '' where there is only one.
        choices: What it may be: schemes or transforms.
        names: Theirs, and one more where there are several backends.
        op: Whose scheme it is; '' for transforms.
    """

    backend: str
    choices: Sequence[object]
    names: tuple[str, ...]
    op: str = ""

    def index(self, recipe: Recipe) -> int | None:
        """Return a recipe's choice; None where it has one that the space has not."""
        if self.backend and recipe.backend != self.backend:
            return len(self.names) - 1
        taken = recipe[self.op] if self.op else recipe.transforms
        return self.choices.index(taken) if taken in self.choices else None


def axes_of(spaces: Mapping[str, TuningSpace]) -> Axes:
    """Return a parameter for each unit that has a choice, for transforms and for the backend.

    Args:
        spaces: By backend.
    """
    several = len(spaces) > 1
    found: dict[str, _Choice] = {}
    for backend, space in spaces.items():
        of, beside = (backend, (ELSEWHERE,)) if several else ("", ())
        for unit in space.tunable:
            names = (*_scheme_names(unit), *beside)
            choice = _Choice(of, unit.choices, names, unit.ops[0])
            found[_name(unit.name, of)] = choice
        if len(space.transforms) > 1:
            names = (*map(_transforms_name, space.transforms), *beside)
            name = f"{of}: {TRANSFORMS}" if several else TRANSFORMS
            found[name] = _Choice(of, space.transforms, names)
    backends = tuple(spaces)

    def place(recipe: Recipe) -> dict[str, int]:
        indices = {name: choice.index(recipe) for name, choice in found.items()}
        placed = {name: index for name, index in indices.items() if index is not None}
        if several and recipe.backend in backends:
            placed[BACKEND] = backends.index(recipe.backend)
        return placed

    choices = {name: choice.names for name, choice in found.items()}
    if several:
        choices[BACKEND] = backends
    return Axes(choices, place)


def _scheme_names(unit: Unit) -> tuple[str, ...]:
    names = distinct(unit.choices)
    return tuple(names[choice] for choice in unit.choices)


def _transforms_name(transforms: tuple[PartChoice, ...]) -> str:
    return in_order(transforms) or "none"


def _name(unit: str, backend: str) -> str:
    """Return a unit's parameter; an op may be called as one of the others is."""
    name = f"op {unit}" if unit in (BACKEND, TRANSFORMS) else unit
    return f"{backend}: {name}" if backend else name


__all__ = ["axes_of"]
