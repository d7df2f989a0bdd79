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
from collections.abc import Sequence
from itertools import pairwise

from octavo.core.contract.parts import PartConfig
from octavo.core.contract.strategy import (
    Believed,
    Foresight,
    Problem,
    RecipeSensitivity,
)
from octavo.core.errors import ConfigError
from octavo.core.numerics.knapsack import exact
from octavo.core.values.recipe import Recipe
from octavo.core.values.trial import Trial
from octavo.strategies.beliefs.cost_belief import CostBelief, families, ratio
from octavo.strategies.beliefs.earlier import Earlier
from octavo.strategies.beliefs.limits import Limits
from octavo.strategies.beliefs.losses import Transforms
from octavo.strategies.beliefs.picks import Picks, chosen, picks_of, total

from . import AutoConfig
from .mixing import Mixer
from .nearest_transforms import least_harmful, nearness
from .plain_recipes import cheapest_within, eight_bits, most_hopeful
from .sequential import Asking, Search, Sequential

FAR = 0.1  # output distance beyond which no goal worth its name is reached

FEW = 2  # trials that are spent on what most likely passes, and not on a search

SUREST = ("static", "dynamic", "weight_only")
"""Modes of 8 bits, in the order in which they are tried then."""

AGAIN = 2
"""Evaluations for a further goal, where earlier runs have told how much recipes lose."""

ROUNDS = 4  # recipes tried for a budget that the artifact overran


class Auto(Sequential):
    """See the module's text.

    Everything it learns comes from its trials, so that replaying them rebuilds it.
    """

    config: AutoConfig

    def __init__(self, config: PartConfig, problem: Problem) -> None:
        super().__init__(config, problem)
        self._mixed: Mixer | None = None
        self._earlier = Earlier(problem)

    def search(self) -> Search:
        """Run the steps."""
        if not self.units:
            self.note = "nothing can be quantized in this space"
            return
        objectives = self.problem.objectives or ("size",)
        self._beliefs = {name: CostBelief(self.space, name) for name in objectives}
        self._aim_at(objectives[0])
        self._limits = Limits(self.problem)
        self.ahead = Foresight(probes=True)
        most = self.problem.max_trials
        if most is not None and most <= FEW:
            yield from self._surest()
            return
        if self._earlier.has_missed(self._cheapest(), self.space.required):
            yield from self._mix(self._earlier.nearest())
        if not self.trials:
            yield from self._from_the_cheapest()
        for held, following in pairwise(objectives):
            yield from self._polish(held, following)

    def _from_the_cheapest(self) -> Search:
        """Try the cheapest recipe, transforms where it misses, and then mixtures."""
        cheapest, trial = yield from self._cheapest_within()
        if trial.over:
            return
        transforms = self.space.required
        if not trial.passed:
            trial, transforms = yield from self._transform(cheapest, trial)
        if trial.passed:
            yield from self._faster(cheapest, trial.recipe.transforms)
        else:
            yield from self._mix(transforms)

    def _aim_at(self, objective: str) -> None:
        self._objective = objective
        self._costs = self._beliefs[objective]

    def _cheapest_within(self) -> Asking[tuple[Picks, Trial]]:
        """Try the cheapest recipe, and cheaper ones as long as a budget is overrun when measured.

        Where none keeps it the note says so, and the trial is the last one.
        """
        cheapest = self._cheapest()
        trial = yield from self._try(cheapest, self.space.required)
        for _ in range(ROUNDS):
            if not trial.over:
                return cheapest, trial
            try:
                smaller = self._cheapest()
            except ConfigError as error:
                overrun = "the budget was overrun when it was measured"
                self.note = f"{overrun}, and then {error}"
                return cheapest, trial
            if smaller == cheapest:
                break
            cheapest = smaller
            trial = yield from self._try(cheapest, self.space.required)
        if trial.over:
            self.note = "no recipe kept the budget when it was measured"
        return cheapest, trial

    def _surest(self) -> Search:
        """Spend one or two evaluations on what most likely passes: 8 bits.

        What is cheaper comes only after that has passed.
        """
        self.note = f"with {self.problem.max_trials} trials at most, 8 bits come first"
        self.ahead = Foresight(self.problem.max_trials)
        options = dict.fromkeys(eight_bits(self.units, mode) for mode in SUREST)
        passing: Picks | None = None
        for picks in filter(self._limits.fits, options):
            trial = yield from self._try(picks, self.space.required)
            if trial.passed:
                passing = picks
                break
        cheapest = self._cheapest()
        if passing is None:
            # Within the budgets, or with nothing of 8 bits on offer.
            likeliest = self._mixer(self.space.required).least_loss()
            yield from self._try(likeliest or cheapest, self.space.required)
            return
        costs = self._costs.costs()
        if total(costs, cheapest) < total(costs, passing):
            yield from self._try(cheapest, self.space.required)

    def _cheapest(self) -> Picks:
        return cheapest_within(self._costs.costs(), self._limits)

    def _try(self, picks: Picks, transforms: Transforms) -> Asking[Trial]:
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
    ) -> Asking[tuple[Trial, Transforms]]:
        """Try the recipe under transforms until one passes.

        Returns:
            The best trial, and the transforms to go on with.
        """
        alternatives = list(self.space.transforms[1:])
        service = self.problem.sensitivity
        near = dict.fromkeys(self.space.transforms, 0.0)
        if alternatives and isinstance(service, RecipeSensitivity):
            near = nearness(self.space, service, picks)
            if min(near.values()) > FAR:
                return plain, least_harmful(self.space, service)
            nearer = [
                t for t in alternatives if near[t] < near[plain.recipe.transforms]
            ]
            nearer.sort(key=lambda t: near[t])
            alternatives = nearer[: self.config.transforms]
        trials = [plain]
        for transforms in alternatives:
            trial = yield from self._try(picks, transforms)
            if trial.passed:
                return trial, transforms
            trials.append(trial)

        # Where all collapse alike, the score cannot tell them apart; the outputs can.
        def rank(trial: Trial) -> tuple[float, float]:
            return round(-trial.margin, 1), near[trial.recipe.transforms]

        found = min(trials, key=rank)
        return found, found.recipe.transforms

    def _faster(self, cheapest: Picks, transforms: Transforms) -> Search:
        """Try what might be cheaper than the cheapest recipe, where costs are only believed."""
        self.note = "the cheapest recipe reaches the goal"
        further = len(self._beliefs) - 1
        if self._costs.exact:
            self.ahead = Foresight(further * self.config.explore, probes=further > 0)
            return
        # Probes come only where a further objective is worth a search.
        self.ahead = Foresight((1 + further) * self.config.explore, probes=further > 0)
        # What was evaluated: by now another recipe may be believed the cheapest.
        tried = {families(self.problem, cheapest)}
        for _ in range(self.config.explore):
            best = self.incumbent
            assert best is not None
            bound = ratio(best, self._objective) * (1 - self.config.worthwhile)
            picks = most_hopeful(
                self.problem, self._cheapest(), self._costs, self._limits, tried, bound
            )
            if picks is None:
                return
            tried.add(families(self.problem, picks))
            yield from self._try(picks, transforms)

    def _mix(self, transforms: Transforms, most: int | None = None) -> Search:
        """Knapsack, evaluate, learn, again; ``most`` bounds the evaluations further."""
        needed = math.ceil(math.log2(max(2, len(self.units))))
        limit = needed + self.config.patience
        if self._earlier.is_enough(transforms):
            limit = min(limit, self._finished() + AGAIN)
        if most is not None:
            if self._finished() >= limit:
                return
            limit = min(limit, self._finished() + most)
        self.ahead = Foresight(self._at_most(limit - self._finished()))
        mixer = self._mixer(transforms)
        while True:
            best = self.incumbent
            left = limit - self._finished()
            if best is not None and left <= 0:
                self.note = (
                    f"{limit} evaluations were used; the best recipe is within reach of the "
                    "knapsack's bound"
                )
                return
            proposed = mixer.propose(best, left)
            if best is None and left <= 0:
                # Until one passes, only the run's limit ends it.
                self.ahead = Foresight()
            if proposed is None:
                self.note = "nothing left can pay" if best else mixer.conclusion()
                return
            trial = yield from self._try(proposed, transforms)
            mixer.learn(proposed, trial)

    def _finished(self) -> int:
        """Return how many evaluations did not fail."""
        return sum(trial.state != "failed" for trial in self.trials)

    def _mixer(self, transforms: Transforms) -> Mixer:
        """Return a mixer that knows the trials so far under one alternative."""
        seen = self._seen_under(transforms)
        self._mixed = Mixer(
            self.problem,
            self.config,
            self._limits,
            self._costs,
            transforms,
            seen,
            self._earlier.under(transforms),
        )
        return self._mixed

    def narrowed(self, trials: Sequence[Trial]) -> Sequence[Trial]:
        """Return, where none passes within the budgets, what is believed to lose least in them."""
        if self._mixed is None or any(trial.passed for trial in trials):
            return trials
        least = self._mixed.least_trial()
        same = [t for t in trials if least is not None and t.number == least.number]
        return same or trials

    def front(self) -> Sequence[Believed]:
        """Return the front of the losses that the search went by."""
        return () if self._mixed is None else self._mixed.allocation.shown()

    def _at_most(self, trials: int) -> int:
        """Return how many evaluations there are with those that further objectives may take."""
        place = list(self._beliefs).index(self._objective)
        further = len(self._beliefs) - 1 - place
        return trials + further * self.config.explore

    def _seen_under(self, transforms: Transforms) -> dict[Picks, Trial]:
        """Return the trials so far under one alternative, without that of the float model."""
        seen = {}
        for trial in self.trials:
            recipe = trial.recipe
            if recipe.transforms == transforms and len(recipe):
                seen[picks_of(self.space, recipe)] = trial
        return seen

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
        before = self.note
        tried = len(self.known)
        yield from self._mix(best.recipe.transforms, self.config.explore)
        self.note = before
        more = len(self.known) - tried
        if more:
            were = "one" if more == 1 else str(more)
            tried_were = "was tried" if more == 1 else "were tried"
            told = f"of equal {held}, {were} of less {following} {tried_were}"
            self.note = f"{before}; {told}"

    def _could_pay(self, picks: Picks) -> bool:
        """Return whether less of the objective than a recipe has is worth a search."""
        costs = self._costs.costs()
        try:
            least = exact(costs, self._limits.rows())
        except ConfigError:
            # What was measured within a budget may be believed to overrun it: then nothing smaller
            # is known.
            return False
        now = total(costs, picks)
        saving = now - total(costs, least)
        return saving >= self.config.worthwhile * now
