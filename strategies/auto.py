"""Auto: the default. From proxy sensitivities to the best recipe in about log2(N) + 5 evaluations.

1. The cheapest recipe of all is tried: where it passes, nothing is left but what might be faster still.
2. Where it does not, model-wide transforms are tried on it, the one first whose outputs stay nearest to the float model's.
3. Sensitivities turn the search into a knapsack: the least cost whose believed loss is tolerated. Each evaluation corrects
   the belief (its scale at first, then the units on which the last recipes differ), and the next knapsack is solved under
   it. A recipe is worth an evaluation by its chance to pass times what it would save.
4. Where nothing left can pay, the next objective decides among ties: with latency and size, smaller recipes that are believed
   to be as fast are sought in the same way.

Budgets are hard: recipes that are believed to overrun one are not evaluated, and one that did is no solution.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Generator, Iterator, Sequence
from itertools import pairwise
from statistics import NormalDist

import numpy as np

from octavo.core.contract.strategy import RecipeSensitivity
from octavo.core.errors import ConfigError
from octavo.core.numerics.knapsack import exact
from octavo.core.numerics.loss_tables import HullTable, LossTable, table
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import OpScheme, PartChoice
from octavo.core.values.trial import Trial

from . import AutoConfig
from .belief import HOPELESS, CostBelief, Family, LossBelief, Picks, family, padded, ratio
from .limits import Limits
from .losses import Transforms, pair_losses, shortlist
from .sequential import Batch, Search, Sequential

AIMS = np.concatenate(
    [np.linspace(0.7, 1.3, 25), np.geomspace(0.01, 0.65, 10)]
)  # believed losses that a recipe is sought for
PRICES = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0)  # of what a budget limits, in shares of the cost
FAR = 0.1  # output distance beyond which no goal worth its name is reached
CLEARLY = 0.7  # of the plain distance, for transforms that no evaluation has compared
FEW = 2  # trials that are spent on what most likely passes, and not on a search
SUREST = (
    "static",
    "dynamic",
    "weight_only",
)  # modes of 8 bits, in the order in which they are tried then
ROUNDS = 4  # recipes tried for a budget that the artifact overran


class Auto(Sequential):
    """See the module's text. Everything it learns comes from its trials, so that replaying them rebuilds it."""

    config: AutoConfig

    def search(self) -> Search:
        """Run the steps."""
        space = self.problem.space
        if not space.tunable:
            self.note = "nothing can be quantized in this space"
            return
        objectives = self.problem.objectives or ("size",)
        self._beliefs = {name: CostBelief(space, name) for name in objectives}
        self._aim_at(objectives[0])
        self._limits = Limits(self.problem)
        if self.problem.max_trials is not None and self.problem.max_trials <= FEW:
            yield from self._surest()
            return
        cheapest = self._cheapest()
        trial = yield from self._try(cheapest, ())
        for _ in range(ROUNDS):
            if not trial.over:
                break
            try:
                smaller = self._cheapest()
            except ConfigError as error:
                self.note = f"the budget was overrun when it was measured, and then {error}"
                return
            if smaller == cheapest:
                break
            cheapest = smaller
            trial = yield from self._try(cheapest, ())
        if trial.over:
            self.note = "no recipe kept the budget when it was measured"
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

    def _surest(self) -> Search:
        """Spend one or two evaluations on what most likely passes: 8 bits; what is cheaper only after that has passed."""
        self.note = f"with {self.problem.max_trials} trials at most, 8 bits come first"
        options = dict.fromkeys(self._eight_bits(mode) for mode in SUREST)
        for picks in filter(self._limits.fits, options):
            trial = yield from self._try(picks, ())
            if trial.passed:
                break
        else:
            # Within the budgets, or with nothing of 8 bits on offer.
            yield from self._try(self._cheapest(), ())
            return
        cheapest = self._cheapest()
        costs = self._costs.costs()
        held, least = (
            sum(float(c[i]) for c, i in zip(costs, p, strict=True)) for p in (picks, cheapest)
        )
        if least < held:
            yield from self._try(cheapest, ())

    def _eight_bits(self, mode: str) -> Picks:
        """Return the recipe that takes a mode at 8 bits or more wherever it is offered, else any at 8 bits, else float."""

        def pick(choices: Sequence[OpScheme]) -> int:
            wide = [i for i, s in enumerate(choices) if not s.is_float and s.weight_bits >= 8]
            return next(
                (i for i in wide if choices[i].mode == mode), wide[0] if wide else len(choices) - 1
            )

        return tuple(pick(u.choices) for u in self.problem.space.tunable)

    def _aim_at(self, objective: str) -> None:
        self._objective, self._costs = objective, self._beliefs[objective]

    def _polish(self, held: str, following: str) -> Search:
        """Search for less of the next objective among recipes that are believed to tie with the best in one."""
        best = self.incumbent
        if best is None or held not in best.objectives:
            return
        picks = self._picks(best.recipe)
        self._limits.hold(self._beliefs[held], picks, best.objectives[held])
        self._aim_at(following)
        costs = self._costs.costs()
        try:
            least = exact(costs, self._limits.rows())
        except ConfigError:  # what was measured within a budget may be believed to overrun it: then nothing smaller is known
            return
        now, then = (
            sum(float(c[i]) for c, i in zip(costs, p, strict=True)) for p in (picks, least)
        )
        if now - then < self.config.worthwhile * now:
            return
        before, tried = self.note, len(self.known)
        yield from self._mix(best.recipe.transforms, self.config.explore)
        more = len(self.known) - tried
        self.note = (
            f"{before}; of equal {held}, {more} of less {following} were tried" if more else before
        )

    def _try(
        self, picks: Picks, transforms: tuple[PartChoice, ...]
    ) -> Generator[Batch, list[Trial], Trial]:
        trial = yield from self.one(self._recipe(picks, transforms))
        for costs in self._beliefs.values():
            costs.observe(picks, trial)
        self._limits.observe(picks, trial)
        return trial

    def _recipe(self, picks: Picks, transforms: tuple[PartChoice, ...]) -> Recipe:
        space = self.problem.space
        return space.recipe(
            {u.name: u.choices[i] for u, i in zip(space.tunable, picks, strict=True)}, transforms
        )

    def _transform(
        self, picks: Picks, plain: Trial
    ) -> Generator[Batch, list[Trial], tuple[Trial, Transforms]]:
        """Try the recipe under transforms until one passes; return the best trial, and the transforms to go on with."""
        alternatives = list(self.problem.space.transforms[1:])
        service = self.problem.sensitivity
        nearness = dict.fromkeys(self.problem.space.transforms, 0.0)
        if alternatives and isinstance(service, RecipeSensitivity):
            nearness = self._nearness(service, picks)
            if min(nearness.values()) > FAR:
                # None can reach the goal with this recipe. Which one is worth going on with shows where outputs are near.
                first = self._nearness(service, (0,) * len(picks))
                best = min(first, key=lambda t: first[t])
                return plain, best if first[best] < CLEARLY * first[()] else ()
            alternatives.sort(key=lambda t: nearness[t])
            alternatives = [t for t in alternatives if nearness[t] < nearness[()]][
                : self.config.transforms
            ]
        trials = [plain]
        for transforms in alternatives:
            trials.append((yield from self._try(picks, transforms)))
            if trials[-1].passed:
                return trials[-1], transforms
        # Where all collapse alike, the score cannot tell them apart; the outputs can.
        found = min(trials, key=lambda t: (round(-t.margin, 1), nearness[t.recipe.transforms]))
        return found, found.recipe.transforms

    def _nearness(self, service: RecipeSensitivity, picks: Picks) -> dict[Transforms, float]:
        every = self.problem.space.transforms
        return dict(
            zip(every, service.distances([self._recipe(picks, t) for t in every]), strict=True)
        )

    def _cheapest(self) -> Picks:
        """Return each unit's cheapest choice, save where the backend's first choice costs next to nothing more.

        One percent of the whole is spent on that: a scale for each channel, eight bits for a tiny layer. Under budgets, the
        cheapest recipe that keeps them.
        """
        costs = self._costs.costs()
        picks = [int(np.argmin(c)) for c in costs]
        room = 0.01 * sum(float(c.min()) for c in costs)
        for extra, unit in sorted(
            (float(c[0] - c.min()), i) for i, c in enumerate(costs) if len(c) > 1
        ):
            room -= extra
            if room < 0:
                break
            picks[unit] = 0
        return (
            tuple(picks)
            if self._limits.fits(tuple(picks))
            else tuple(exact(costs, self._limits.rows()))
        )

    def _faster(self, cheapest: Picks, transforms: tuple[PartChoice, ...]) -> Search:
        """The cheapest recipe passes. Where costs are only believed, try what might be cheaper still."""
        self.note = "the cheapest recipe reaches the goal"
        if self._costs.exact:
            return
        tried = {
            self._families(cheapest)
        }  # what was evaluated: by now another may be believed the cheapest
        for _ in range(self.config.explore):
            best = self.incumbent
            assert best is not None
            options = {self._families(p): p for p in reversed(list(self._uniform()))}
            hopes = [
                (mean - deviation, p)
                for f, p in options.items()
                if f not in tried and self._limits.fits(p)
                for mean, deviation in [self._costs.predict(p)]
                if mean - deviation < ratio(best, self._objective) * (1 - self.config.worthwhile)
            ]
            if not hopes:
                return
            picks = min(hopes)[1]
            tried.add(self._families(picks))
            yield from self._try(picks, transforms)

    def _families(self, picks: Picks) -> tuple[Family, ...]:
        return tuple(
            family(u, u.choices[i]) for u, i in zip(self.problem.space.tunable, picks, strict=True)
        )

    def _uniform(self) -> Iterator[Picks]:
        """Yield recipes that take one mode and width wherever it is offered (the backend's first of it), else the cheapest choice."""
        cheapest = self._cheapest()
        units = self.problem.space.tunable
        for mode, bits in dict.fromkeys(
            (s.mode, s.weight_bits) for u in units for s in u.choices if not s.is_float
        ):
            offered = [
                [i for i, s in enumerate(u.choices) if (s.mode, s.weight_bits) == (mode, bits)]
                for u in units
            ]
            yield tuple(o[0] if o else i for o, i in zip(offered, cheapest, strict=True))
        yield cheapest

    def _mix(self, transforms: Transforms, most: int | None = None) -> Search:
        """Knapsack, evaluate, learn, again; ``most`` bounds the evaluations further."""
        seen = {
            self._picks(t.recipe): t
            for t in self.trials
            if t.recipe.transforms == transforms and len(t.recipe)
        }
        limit = math.ceil(math.log2(max(2, len(self.problem.space.tunable)))) + self.config.patience
        if most is not None:
            if len(seen) >= limit:
                return
            limit = min(limit, len(seen) + most)
        proxies = self._proxies(transforms, seen)
        belief = self._rebuilt(proxies, seen)
        misses, strikes = 0, 2
        avoided: set[Family] = set()
        while True:
            best = self.incumbent
            if best is not None and sum(t.state != "failed" for t in seen.values()) >= limit:
                self.note = f"{limit} evaluations were used; the best recipe is within reach of the knapsack's bound"
                return
            proposed = self._propose(belief, seen, best, misses)
            if proposed is None and avoided:
                # They may have failed by chance, and get another one before the search ends.
                strikes += 1
                avoided = self._suspects(seen, strikes)
                belief = self._rebuilt(self._barred(proxies, avoided), seen)
                continue
            if proposed is None:
                self.note = (
                    "nothing left can pay"
                    if best
                    else "no recipe of this space is believed to reach the goal"
                )
                return
            trial = yield from self._try(proposed, transforms)
            seen[proposed] = trial
            if trial.state == "failed":
                avoided = self._suspects(seen, strikes)
                belief = self._rebuilt(self._barred(proxies, avoided), seen)
            else:
                # What overran a budget and not the loss says that limits were believed too wide, and these have learnt it.
                misses = 0 if trial.margin >= 0 else misses + 1
                belief.observe(proposed, _loss(trial))

    def _proxies(
        self, transforms: tuple[PartChoice, ...], seen: Collection[Picks]
    ) -> list[np.ndarray]:
        """Return the proxy loss of every choice that is worth it, scaled to a mean of 1; the others are out of reach."""
        units = self.problem.space.tunable
        listed = [
            sorted({*kept, *(picks[i] for picks in seen)})
            for i, kept in enumerate(
                shortlist(self.problem, self._limits.reachable(self._costs.costs()), transforms)
            )
        ]
        pairs = [(u, u.choices[i]) for u, kept in zip(units, listed, strict=True) for i in kept]
        flat = np.array(pair_losses(self.problem, self.config.sensitivity, pairs, transforms))
        finite = flat[np.isfinite(flat)]
        flat = np.where(np.isfinite(flat), flat / max(float(finite.mean()), 1e-300), HOPELESS)
        rows = [np.full(len(u.choices), HOPELESS) for u in units]
        for row, kept, losses in zip(
            rows, listed, np.split(flat, np.cumsum([len(k) for k in listed])[:-1]), strict=True
        ):
            row[kept] = losses
        return rows

    def _propose(
        self, belief: LossBelief, seen: dict[Picks, Trial], best: Trial | None, misses: int
    ) -> Picks | None:
        """Return the recipe most worth an evaluation, or None where none is."""
        costs = self._costs.costs()
        by_choice, units = padded(costs), np.arange(len(costs))
        solutions = self._solutions(costs, belief.losses())
        best_cost = (
            float(by_choice[units, self._picks(best.recipe)].sum())
            if best is not None
            else sum(float(c[-1]) for c in costs)
        )
        # With each miss the aim is lowered, so that a goal that can be reached is reached whatever the proxies are worth.
        lowered = 0.7 ** max(0, misses - 2) if best is None else 1.0
        nothing = tuple(len(c) - 1 for c in costs)
        found: dict[Picks, float] = {}
        for aim in AIMS * lowered:
            offered = (tuple(p) for s in solutions if (p := s.pick(float(aim))) is not None)
            picks = next((p for p in offered if self._limits.fits(p)), nothing)
            if picks in seen or picks in found or picks == nothing:
                continue
            mean, deviation = belief.predict(picks) if belief.known else (float(aim), 0.5)
            chance = NormalDist(mean, deviation).cdf(1.0)
            found[picks] = chance * (
                1.0 - float(by_choice[units, picks].sum()) / max(best_cost, 1e-300)
            )
        if not found:
            return None
        picks = max(found, key=lambda p: (found[p], p))
        return None if best is not None and found[picks] < self.config.worthwhile else picks

    def _solutions(
        self, costs: list[np.ndarray], losses: list[np.ndarray]
    ) -> list[LossTable | HullTable]:
        """Return the knapsack over losses; under budgets several, with ever higher prices on what is limited."""
        if not self._limits:
            return [table(costs, losses, 1.3)]
        rows = [[u / limit for u in uses] for uses, limit in self._limits.rows()]
        whole = sum(float(c.max()) for c in costs)

        def priced(price: float) -> list[np.ndarray]:
            return [c / whole + price * sum(uses[i] for uses in rows) for i, c in enumerate(costs)]

        return [table(priced(price), losses, 1.3) for price in PRICES]

    def _picks(self, recipe: Recipe) -> Picks:
        return tuple(u.choices.index(recipe[u.ops[0]]) for u in self.problem.space.tunable)

    def _suspects(self, seen: dict[Picks, Trial], strikes: int) -> set[Family]:
        """Return the families that so many failed trials used, and no finished one."""
        used = [(t.state == "failed", set(self._families(p))) for p, t in seen.items()]
        worked = {f for failed, families in used if not failed for f in families}
        failures = Counter(
            f for failed, families in used if failed for f in families - worked if f[1] != "float"
        )
        return {f for f, count in failures.items() if count >= strikes}

    def _barred(self, proxies: list[np.ndarray], avoided: set[Family]) -> list[np.ndarray]:
        """Return the proxies with some families out of reach."""
        units = self.problem.space.tunable
        return [
            np.array(
                [
                    HOPELESS if family(u, s) in avoided else p
                    for s, p in zip(u.choices, row, strict=True)
                ]
            )
            for u, row in zip(units, proxies, strict=True)
        ]

    def _rebuilt(self, proxies: list[np.ndarray], seen: dict[Picks, Trial]) -> LossBelief:
        belief = LossBelief(proxies)
        for picks, trial in seen.items():
            if trial.state != "failed":
                belief.observe(picks, _loss(trial))
        if not belief.known:
            belief.guess(10.0)
        return belief


def _loss(trial: Trial) -> float:
    """Return a trial's loss in tolerated losses; at most 100, where a score has collapsed."""
    return min(1.0 - trial.margin, 100.0) if not math.isnan(trial.margin) else 100.0
