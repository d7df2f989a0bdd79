"""Recipes as their backend carries them out, so that no trial is spent on two names for one model.

A runtime that compiles whole graphs may run an op in float because of its neighbours' schemes, and
:meth:`Session.outcome` says so. Such a recipe is tried as what is left of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from octavo.core.contract.adapter import Opened
from octavo.core.contract.strategy import Believed, Foresight, Strategy, Wait
from octavo.core.quantizing.float_reasons import why_neighbours_refuse
from octavo.core.values.recipe import Recipe
from octavo.core.values.space import TuningSpace
from octavo.core.values.trial import Trial

MOST = 1000
"""Recipes in a row that a strategy may ask for and that are known under other names.

Then the loop takes over, which ends searches that only repeat themselves.
"""

SHOWN = 3
"""Ops that a remark names."""


class Settling:
    """Turns recipes of one backend into what it carries out of them.

    Args:
        opened: The model there.
        space: Its units take one decision each: one stays float where all of its ops do. Where only
            some do, the recipe stays as it is, and the ledger says what becomes of them.
        tell: Takes what the user should know: each reason once.
    """

    def __init__(
        self, opened: Opened, space: TuningSpace, tell: Callable[[str], None]
    ) -> None:
        self._opened = opened
        self._units = {op: unit.ops for unit in space.units for op in unit.ops}
        self._tell = tell
        self._settled: dict[Recipe, Recipe] = {}
        self._told: set[str] = set()

    def __call__(self, recipe: Recipe) -> Recipe:
        """Return what is carried out of a recipe: itself, or the same with units in float."""
        found = self._settled.get(recipe)
        if found is None:
            found = self._without_refused(recipe)
            # What was left out may decide over others in its turn.
            found = recipe if found == recipe else self(found)
            self._settled[recipe] = found
        return found

    def _without_refused(self, recipe: Recipe) -> Recipe:
        refused = why_neighbours_refuse(self._opened, recipe)
        dropped = {
            op: why for op, why in refused.items() if self._is_whole(op, refused)
        }
        by_reason: dict[str, list[str]] = {}
        for op, why in dropped.items():
            by_reason.setdefault(why, []).append(op)
        for why, ops in by_reason.items():
            self._tell_once(why, ops)
        return recipe.without(dropped)

    def _is_whole(self, op: str, refused: Iterable[str]) -> bool:
        """Return whether all that decides with an op is refused too."""
        return set(self._units.get(op, (op,))).issubset(refused)

    def _tell_once(self, why: str, ops: Sequence[str]) -> None:
        if why in self._told:
            return
        self._told.add(why)
        more = f" and {len(ops) - SHOWN} more" if len(ops) > SHOWN else ""
        self._tell(
            f"{self._opened.name} runs some ops in float where their neighbours' schemes decide "
            f"(first met: {', '.join(ops[:SHOWN])}{more}): {why}; such recipes are tried with them "
            "in float"
        )


class Settled(Strategy):
    """A strategy whose recipes are tried as they are carried out.

    It is told the trial under the name that it asked for. A recipe that comes to the same as one
    that it was told of, or as the float model, is answered at once and costs no trial.

    Args:
        strategy: Asks.
        settle: Returns what is carried out of a recipe.
        baseline: The float model's trial.
    """

    def __init__(
        self, strategy: Strategy, settle: Callable[[Recipe], Recipe], baseline: Trial
    ) -> None:
        super().__init__(strategy.config, strategy.problem)
        self._strategy = strategy
        self._settle = settle
        self._baseline = baseline
        self._trials: dict[Recipe, Trial] = {}
        self._pending: dict[Recipe, list[Recipe]] = {}
        self._first_name: dict[Recipe, Recipe] = {}

    def ask(self) -> Recipe | Wait | None:
        """Return the next recipe that is carried out as it stands."""
        answered = 0
        found = self._strategy.ask()
        while isinstance(found, Recipe):
            real = self._settle(found)
            is_new = real == found or not self._is_answered(found, real)
            if is_new or answered == MOST:
                return self._noted(found, real)
            answered += 1
            found = self._strategy.ask()
        return found

    def _noted(self, found: Recipe, real: Recipe) -> Recipe:
        """Return what is tried, and remember the name by which it was asked for."""
        self._first_name.setdefault(real, found)
        names = self._pending.setdefault(real, [])
        if found not in names:
            names.append(found)
        return real

    def _is_answered(self, found: Recipe, real: Recipe) -> bool:
        """Tell the strategy a recipe's trial where what it comes to is known."""
        known = self._trials.get(real)
        if known is None and not len(real) and not real.transforms:
            known = self._baseline
        if known is None:
            return False
        self._strategy.tell(replace(known, recipe=found, reused=known.number))
        return True

    def tell(self, trial: Trial) -> None:
        """Pass a trial on, under each name that it was asked for."""
        self._trials[trial.recipe] = trial
        names = self._pending.pop(trial.recipe, [trial.recipe])
        for place, name in enumerate(names):
            named = replace(trial, recipe=name)
            if place:
                named = replace(named, reused=trial.number)
            self._strategy.tell(named)

    def explain(self) -> str:
        """Say where the search stands."""
        return self._strategy.explain()

    def narrowed(self, trials: Sequence[Trial]) -> Sequence[Trial]:
        """Return the trials that the strategy leaves, which knows them by its own names."""
        by_number = {trial.number: trial for trial in trials}
        names = self._first_name
        asked = [replace(t, recipe=names.get(t.recipe, t.recipe)) for t in trials]
        return [by_number[trial.number] for trial in self._strategy.narrowed(asked)]

    def front(self) -> Sequence[Believed]:
        """Return what the strategy believes of recipes that are carried out as they stand."""
        believed = self._strategy.front()
        return [each for each in believed if self._settle(each.recipe) == each.recipe]

    def foresee(self) -> Foresight:
        """Say what may still be asked for."""
        return self._strategy.foresee()


__all__ = ["Settled", "Settling"]
