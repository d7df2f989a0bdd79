"""A search written as a generator: it yields batches of recipes and is handed their trials.

:class:`Sequential` turns it into the ask/tell object that the loop drives. A whole strategy then
reads from top to bottom::

    class Pair(Sequential):
        def search(self):
            first, second = ...                                       # two recipes
            trials = yield from self.run((first, second))             # may run in parallel
            if not any(t.passed for t in trials):
                yield from self.one(self.problem.space.recipe({}))    # float

Replay needs nothing more: the same answers lead the same generator to the same place.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

from octavo.core.contract.parts import PartConfig
from octavo.core.contract.strategy import WAIT, Foresight, Problem, Strategy, Wait
from octavo.core.scoring.choice import choose, worth_it
from octavo.core.values.recipe import Recipe
from octavo.core.values.trial import Trial


@dataclass(frozen=True)
class AskedRecipes:
    """Recipes that do not wait for each other.

    Attributes:
        recipes: Drawn lazily, in order.
        until: After a trial for which this is true, no further recipe of the batch is drawn.
    """

    recipes: Iterable[Recipe]
    until: Callable[[Trial], bool] | None = None


Found = TypeVar("Found")

Asking = Generator[AskedRecipes, list[Trial], Found]
"""A part of a search: it yields batches, is sent their trials, and returns what it found."""

Search = Asking[None]
Answer = Asking[list[Trial]]


def passed(trial: Trial) -> bool:
    """True if the trial reached the goal."""
    return trial.passed


class Sequential(Strategy):
    """Base of strategies whose search is a generator.

    No recipe is returned twice: what is known is answered from memory.

    Attributes:
        space: The problem's.
        units: Those of the space that have a choice.
        known: Every trial told, by the digest of its recipe.
        note: Where the search stands or why it ended.
    """

    def __init__(self, config: PartConfig, problem: Problem) -> None:
        super().__init__(config, problem)
        self.space = problem.space
        self.units = problem.space.tunable
        self.known: dict[str, Trial] = {}
        self.note = ""
        self.ahead = Foresight()
        self._search: Search | None = None
        self._batch: AskedRecipes | None = None
        self._source: Iterator[Recipe] = iter(())
        self._drawn: list[str] = []
        self._pending: set[str] = set()
        self._exhausted = False
        self._ended = False

    @abstractmethod
    def search(self) -> Search:
        """Yield batches; each ``yield`` returns their finished trials, in the order of drawing."""

    def run(
        self, recipes: Iterable[Recipe], until: Callable[[Trial], bool] | None = None
    ) -> Answer:
        """Evaluate recipes (``yield from`` it) and return the trials of those that were drawn."""
        trials: list[Trial] = yield AskedRecipes(recipes, until)
        return trials

    def one(self, recipe: Recipe) -> Asking[Trial]:
        """Evaluate one recipe (``yield from`` it) and return its trial."""
        trials: list[Trial] = yield AskedRecipes((recipe,))
        return trials[0]

    @property
    def trials(self) -> tuple[Trial, ...]:
        """Every trial told, in the order of telling."""
        return tuple(self.known.values())

    @property
    def incumbent(self) -> Trial | None:
        """The best passing trial so far, as the run's end would choose it.

        None before the first.
        """
        return choose(self.trials, self.problem.objectives)

    def rank(self, trial: Trial) -> tuple[float, ...]:
        """Return a sort key: passing trials first, by their costs; the others by their margin."""
        if trial.passed:
            return (0.0, *trial.costs(self.problem.objectives), -trial.margin)
        no_costs = (0.0,) * len(self.problem.objectives)
        return (1.0, *no_costs, -trial.margin)

    def ask(self) -> Recipe | Wait | None:
        """Return the next recipe that is not known or pending.

        WAIT when the search needs the pending trials first.
        """
        while not self._ended:
            recipe = self._draw()
            if recipe is not None:
                return recipe
            if any(digest not in self.known for digest in self._drawn):
                return WAIT
            self._advance()
        return None

    def tell(self, trial: Trial) -> None:
        """Take a finished trial, asked for or not."""
        digest = trial.recipe.digest
        self._pending.discard(digest)
        self.known[digest] = trial
        if digest in self._drawn:
            self._judge(trial)
        if self.problem.stop_at_goal and self._is_goal(trial):
            self._ended = True
            self.note = self.note or "stopped at the first recipe that reaches the goal"

    def _is_goal(self, trial: Trial) -> bool:
        """Return whether the run can end with a trial.

        One that is no gain over the float model is no winner, save under a budget, which the float
        model does not keep.
        """
        if not trial.passed or not len(trial.recipe):
            return False
        if self.problem.budgets:
            return True
        return worth_it(trial, None, self.problem.objectives)

    def explain(self) -> str:
        """Say where the search stands or why it ended."""
        return self.note

    @property
    def ahead(self) -> Foresight:
        """What the search may still ask for; :meth:`search` sets it wherever it knows more."""
        if self._ahead.trials is None:
            return self._ahead
        told_since = len(self.known) - self._known_then
        return replace(self._ahead, trials=max(0, self._ahead.trials - told_since))

    @ahead.setter
    def ahead(self, foresight: Foresight) -> None:
        self._ahead = foresight
        self._known_then = len(self.known)

    def foresee(self) -> Foresight:
        """Return what the search may still ask for: nothing once it has ended."""
        return Foresight(0) if self._ended else self.ahead

    def _draw(self) -> Recipe | None:
        """Return the batch's next recipe that nobody knows yet; None where there is none."""
        while not self._exhausted:
            recipe = next(self._source, None)
            if recipe is None:
                self._exhausted = True
                return None
            digest = recipe.digest
            self._drawn.append(digest)
            if digest in self.known:
                self._judge(self.known[digest])
            elif digest not in self._pending:
                self._pending.add(digest)
                return recipe
        return None

    def _judge(self, trial: Trial) -> None:
        """End the batch where a trial of it says so."""
        until = self._batch.until if self._batch is not None else None
        if until is not None and until(trial):
            self._exhausted = True

    def _advance(self) -> None:
        """Hand the batch's trials to the search, and take its next batch."""
        try:
            if self._search is None:
                self._search = self.search()
                self._batch = next(self._search)
            else:
                trials = [self.known[digest] for digest in dict.fromkeys(self._drawn)]
                self._batch = self._search.send(trials)
        except StopIteration:
            self._ended = True
            return
        self._source = iter(self._batch.recipes)
        self._drawn = []
        self._exhausted = False
