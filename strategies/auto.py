"""Auto: the default. From proxy sensitivities to the best recipe in about log2(N) + 5 evaluations.

1. The cheapest recipe of all is tried: where it passes, nothing is left but what might be faster
   still.
2. Where it does not, model-wide transforms are tried on it, the one first whose outputs stay
   nearest to the float model's.
3. Sensitivities turn the search into a knapsack: the least cost whose believed loss is tolerated.
   Each evaluation corrects the belief (its scale at first, then the units on which the last recipes
   differ), and the next knapsack is solved under it. A recipe is worth an evaluation by its chance
   to pass times what it would save.
4. Where nothing left can pay, the next objective decides among ties: with latency and size, smaller
   recipes that are believed to be as fast are sought in the same way.

Budgets are hard: recipes that are believed to overrun one are not evaluated, and one that did is no
solution.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from itertools import pairwise

import numpy as np

from octavo.core.contract.strategy import RecipeSensitivity
from octavo.core.errors import ConfigError
from octavo.core.numerics.knapsack import exact
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import OpScheme
from octavo.core.values.trial import Trial

from . import AutoConfig
from .cost_belief import CostBelief, ratio
from .limits import Limits
from .losses import Transforms
from .mixing import Mixer, families
from .picks import Picks, chosen, picks_of, total
from .sequential import Batch, Search, Sequential

FAR = 0.1  # output distance beyond which no goal worth its name is reached

CLEARLY = 0.7  # of the plain distance, for transforms that no evaluation has compared

FEW = 2  # trials that are spent on what most likely passes, and not on a search

SUREST = ("static", "dynamic", "weight_only")
"""Modes of 8 bits, in the order in which they are tried then."""

ROUNDS = 4  # recipes tried for a budget that the artifact overran

SPENT = 0.01
"""Share of the least cost that is spent on the backend's first choices.

A scale for each channel, eight bits for a tiny layer.
"""


class Auto(Sequential):
    """See the module's text.

    Everything it learns comes from its trials, so that replaying them rebuilds it.
    """

    config: AutoConfig

    def search(self) -> Search:
        """Run the steps."""
        if not self.units:
            self.note = "nothing can be quantized in this space"
            return
        objectives = self.problem.objectives or ("size",)
        self._beliefs = {name: CostBelief(self.space, name) for name in objectives}
        self._aim_at(objectives[0])
        self._limits = Limits(self.problem)
        if self.problem.max_trials is not None and self.problem.max_trials <= FEW:
            yield from self._surest()
            return
        cheapest, trial = yield from self._cheapest_within()
        if trial.over:
            return
        transforms: Transforms = ()
        if not trial.passed:
            trial, transforms = yield from self._transform(cheapest, trial)
        if trial.passed:
            yield from self._faster(cheapest, trial.recipe.transforms)
        else:
            yield from self._mix(transforms)
        for held, following in pairwise(objectives):
            yield from self._polish(held, following)

    def _aim_at(self, objective: str) -> None:
        self._objective = objective
        self._costs = self._beliefs[objective]

    def _cheapest_within(self) -> Generator[Batch, list[Trial], tuple[Picks, Trial]]:
        """Try the cheapest recipe, and cheaper ones as long as a budget is overrun when measured.

        Where none keeps it the note says so, and the trial is the last one.
        """
        cheapest = self._cheapest()
        trial = yield from self._try(cheapest, ())
        for _ in range(ROUNDS):
            if not trial.over:
                return cheapest, trial
            try:
                smaller = self._cheapest()
            except ConfigError as error:
                self.note = (
                    f"the budget was overrun when it was measured, and then {error}"
                )
                return cheapest, trial
            if smaller == cheapest:
                break
            cheapest = smaller
            trial = yield from self._try(cheapest, ())
        if trial.over:
            self.note = "no recipe kept the budget when it was measured"
        return cheapest, trial

    def _surest(self) -> Search:
        """Spend one or two evaluations on what most likely passes: 8 bits.

        What is cheaper comes only after that has passed.
        """
        self.note = f"with {self.problem.max_trials} trials at most, 8 bits come first"
        options = dict.fromkeys(self._eight_bits(mode) for mode in SUREST)
        passing: Picks | None = None
        for picks in filter(self._limits.fits, options):
            trial = yield from self._try(picks, ())
            if trial.passed:
                passing = picks
                break
        cheapest = self._cheapest()
        if passing is None:
            # Within the budgets, or with nothing of 8 bits on offer.
            yield from self._try(cheapest, ())
            return
        costs = self._costs.costs()
        if total(costs, cheapest) < total(costs, passing):
            yield from self._try(cheapest, ())

    def _eight_bits(self, mode: str) -> Picks:
        """Return the recipe that takes a mode at 8 bits or more wherever it is offered.

        Else any at 8 bits, else float.
        """

        def pick(choices: Sequence[OpScheme]) -> int:
            wide = []
            for index, scheme in enumerate(choices):
                if not scheme.is_float and scheme.weight_bits >= 8:
                    wide.append(index)
            of_mode = [index for index in wide if choices[index].mode == mode]
            in_float = len(choices) - 1
            return [*of_mode, *wide, in_float][0]

        return tuple(pick(unit.choices) for unit in self.units)

    def _cheapest(self) -> Picks:
        """Return each unit's cheapest choice.

        Save where the backend's first choice costs next to nothing more. Under budgets, the
        cheapest recipe that keeps them.

        Raises:
            ConfigError: If none keeps them.
        """
        costs = self._costs.costs()
        picks = [int(np.argmin(cost)) for cost in costs]
        least = [float(cost.min()) for cost in costs]
        room = SPENT * sum(least)
        extras = []
        for row, cost in enumerate(costs):
            extra = float(cost[0] - cost.min())
            extras.append((extra, row))
        for extra, unit in sorted(extras):
            room -= extra
            if room < 0:
                break
            picks[unit] = 0
        if self._limits.fits(tuple(picks)):
            return tuple(picks)
        return tuple(exact(costs, self._limits.rows()))

    def _try(
        self, picks: Picks, transforms: Transforms
    ) -> Generator[Batch, list[Trial], Trial]:
        """Evaluate a recipe, and let all beliefs learn from it."""
        trial = yield from self.one(self._recipe(picks, transforms))
        for costs in self._beliefs.values():
            costs.observe(picks, trial)
        self._limits.observe(picks, trial)
        return trial

    def _recipe(self, picks: Picks, transforms: Transforms) -> Recipe:
        space = self.space
        return space.recipe(chosen(space, picks), transforms)

    def _transform(
        self, picks: Picks, plain: Trial
    ) -> Generator[Batch, list[Trial], tuple[Trial, Transforms]]:
        """Try the recipe under transforms until one passes.

        Returns:
            The best trial, and the transforms to go on with.
        """
        alternatives = list(self.space.transforms[1:])
        service = self.problem.sensitivity
        nearness = dict.fromkeys(self.space.transforms, 0.0)
        if alternatives and isinstance(service, RecipeSensitivity):
            nearness = self._nearness(service, picks)
            if min(nearness.values()) > FAR:
                return plain, self._least_harmful(service)
            nearer = [t for t in alternatives if nearness[t] < nearness[()]]
            nearer.sort(key=lambda t: nearness[t])
            alternatives = nearer[: self.config.transforms]
        trials = [plain]
        for transforms in alternatives:
            trial = yield from self._try(picks, transforms)
            if trial.passed:
                return trial, transforms
            trials.append(trial)
        # Where all collapse alike, the score cannot tell them apart; the outputs can.
        found = min(
            trials, key=lambda t: (round(-t.margin, 1), nearness[t.recipe.transforms])
        )
        return found, found.recipe.transforms

    def _least_harmful(self, service: RecipeSensitivity) -> Transforms:
        """Return transforms to go on with where none can reach the goal with the cheapest recipe.

        Which one is worth it shows where outputs are near: with the backend's first choices.
        """
        first = self._nearness(service, (0,) * len(self.units))
        best = min(first, key=lambda t: first[t])
        return best if first[best] < CLEARLY * first[()] else ()

    def _nearness(
        self, service: RecipeSensitivity, picks: Picks
    ) -> dict[Transforms, float]:
        """Return the distance of a recipe's outputs to the float model's under each transform."""
        every = self.space.transforms
        distances = service.distances([self._recipe(picks, t) for t in every])
        return dict(zip(every, distances, strict=True))

    def _faster(self, cheapest: Picks, transforms: Transforms) -> Search:
        """Try what might be cheaper than the cheapest recipe, where costs are only believed."""
        self.note = "the cheapest recipe reaches the goal"
        if self._costs.exact:
            return
        # What was evaluated: by now another recipe may be believed the cheapest.
        tried = {families(self.problem, cheapest)}
        for _ in range(self.config.explore):
            best = self.incumbent
            assert best is not None
            bound = ratio(best, self._objective) * (1 - self.config.worthwhile)
            options = {}
            for picks in reversed(list(self._uniform())):
                options[families(self.problem, picks)] = picks
            hopes = []
            for of, picks in options.items():
                mean, deviation = self._costs.predict(picks)
                hoped = mean - deviation
                if of not in tried and hoped < bound and self._limits.fits(picks):
                    hopes.append((hoped, picks))
            if not hopes:
                return
            picks = min(hopes)[1]
            tried.add(families(self.problem, picks))
            yield from self._try(picks, transforms)

    def _uniform(self) -> Iterator[Picks]:
        """Yield recipes that take one mode and width wherever it is offered.

        The backend's first of it, and the cheapest choice where there is none; the last one takes
        the cheapest everywhere.
        """
        cheapest = self._cheapest()
        units = self.units
        quantized = [s for unit in units for s in unit.choices[:-1]]
        for way in dict.fromkeys((s.mode, s.weight_bits) for s in quantized):
            picks = list(cheapest)
            for row, unit in enumerate(units):
                ways = [(s.mode, s.weight_bits) for s in unit.choices]
                if way in ways:
                    picks[row] = ways.index(way)
            yield tuple(picks)
        yield cheapest

    def _mix(self, transforms: Transforms, most: int | None = None) -> Search:
        """Knapsack, evaluate, learn, again; ``most`` bounds the evaluations further."""
        space = self.space
        seen = {}
        for trial in self.trials:
            recipe = trial.recipe
            if recipe.transforms == transforms and len(recipe):
                seen[picks_of(space, recipe)] = trial
        halvings = math.log2(max(2, len(space.tunable)))
        limit = math.ceil(halvings) + self.config.patience
        if most is not None:
            if len(seen) >= limit:
                return
            limit = min(limit, len(seen) + most)
        mixer = Mixer(
            self.problem, self.config, self._limits, self._costs, transforms, seen
        )
        while True:
            best = self.incumbent
            if best is not None and mixer.finished >= limit:
                self.note = (
                    f"{limit} evaluations were used; the best recipe is within reach of the "
                    "knapsack's bound"
                )
                return
            proposed = mixer.propose(best)
            if proposed is None:
                self.note = (
                    "nothing left can pay"
                    if best
                    else "no recipe of this space is believed to reach the goal"
                )
                return
            trial = yield from self._try(proposed, transforms)
            mixer.learn(proposed, trial)

    def _polish(self, held: str, following: str) -> Search:
        """Search for less of the next objective among what may tie with the best in one."""
        best = self.incumbent
        if best is None or held not in best.objectives:
            return
        picks = picks_of(self.space, best.recipe)
        self._limits.hold(self._beliefs[held], picks, best.objectives[held])
        self._aim_at(following)
        if not self._could_pay(picks):
            return
        before, tried = self.note, len(self.known)
        yield from self._mix(best.recipe.transforms, self.config.explore)
        self.note = before
        if more := len(self.known) - tried:
            self.note = (
                f"{before}; of equal {held}, {more} of less {following} were tried"
            )

    def _could_pay(self, picks: Picks) -> bool:
        """Return whether less of the objective than a recipe has is worth a search."""
        costs = self._costs.costs()
        try:
            least = exact(costs, self._limits.rows())
        except ConfigError:
            # What was measured within a budget may be believed to overrun it: then nothing smaller
            # is known.
            return False
        now, then = total(costs, picks), total(costs, least)
        return now - then >= self.config.worthwhile * now
