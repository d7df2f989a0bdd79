"""What dashboards call the axes of a study: a recipe as named parameters of Optuna.

Optuna's own way would ask the database twice for each parameter of each trial; with 229 ops that is
seconds. Here all of a trial are one insertion.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from octavo.core.values.recipe import Recipe

if TYPE_CHECKING:
    from optuna.distributions import CategoricalDistribution
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial

LONGEST = 512
"""Characters that a database takes of a parameter's name."""

METRIC_NAMES = "study:metric_names"
"""System attribute of a study that ``study.set_metric_names`` writes."""


@dataclass(frozen=True)
class Axes:
    """How a recipe reads as parameters.

    Attributes:
        choices: Name of a parameter -> names of its choices, all different.
        place: Recipe -> index of its choice for each parameter that it has one of.
    """

    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    place: Callable[[Recipe], Mapping[str, int]] = lambda recipe: {}


class Parameters:
    """Writes the parameters of trials.

    Args:
        axes: What there is to write.
        earlier: Trials of the study. A parameter keeps the names of choices that they were written
            with, or Optuna would see two different ones.
    """

    def __init__(self, axes: Axes, earlier: Iterable[FrozenTrial] = ()) -> None:
        self._place = axes.place
        self._known = {
            name: _Known(_short(name), _distribution(choices))
            for name, choices in axes.choices.items()
        }
        by_short = {known.name: known for known in self._known.values()}
        for frozen in earlier:
            for name, distribution in frozen.distributions.items():
                if name in by_short:
                    by_short.pop(name).take(distribution)

    def write(self, storage: RDBStorage, row: int, recipe: Recipe) -> None:
        """Write a trial's parameters, in one transaction."""
        import sqlalchemy

        placed = self._place(recipe)
        rows = [self._known[name].row(row, index) for name, index in placed.items()]
        if rows:
            columns: list[Any] = [sqlalchemy.column(name) for name in rows[0]]
            table = sqlalchemy.table("trial_params", *columns)
            with storage.engine.begin() as connection:
                connection.execute(sqlalchemy.insert(table), rows)


class _Known:
    """One parameter, as its rows say it."""

    def __init__(self, name: str, distribution: CategoricalDistribution) -> None:
        self.name = name
        self._count = len(distribution.choices)
        self._text = _as_text(distribution)

    def take(self, distribution: Any) -> None:
        """Go on with what earlier trials were written with, where it has as many choices."""
        if len(getattr(distribution, "choices", ())) == self._count:
            self._text = _as_text(distribution)

    def row(self, trial: int, index: int) -> dict[str, Any]:
        return {
            "trial_id": trial,
            "param_name": self.name,
            "param_value": float(index),
            "distribution_json": self._text,
        }


def _distribution(choices: tuple[str, ...]) -> CategoricalDistribution:
    from optuna.distributions import CategoricalDistribution

    return CategoricalDistribution(choices)


def _as_text(distribution: Any) -> str:
    from optuna.distributions import distribution_to_json

    return str(distribution_to_json(distribution))


def _short(name: str) -> str:
    """Return a name that fits the database, and is no other's."""
    if len(name) <= LONGEST:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    return f"{name[: LONGEST - 20]}... {digest}"
