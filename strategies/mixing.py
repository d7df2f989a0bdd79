"""Which mixture of schemes is worth an evaluation: a knapsack under what is believed of losses."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import NormalDist

import numpy as np

from octavo.core.contract.strategy import Problem
from octavo.core.errors import ConfigError
from octavo.core.numerics.loss_tables import HullTable, LossTable, table
from octavo.core.values.trial import Trial
from octavo.strategies.beliefs.allocation import Allocation
from octavo.strategies.beliefs.cost_belief import CostBelief, Family, families, family
from octavo.strategies.beliefs.limits import Limits
from octavo.strategies.beliefs.loss_belief import (
    COLLAPSED,
    HOPELESS,
    LossBelief,
    padded,
)
from octavo.strategies.beliefs.losses import Transforms, shortlist
from octavo.strategies.beliefs.picks import Picks, picks_of
from octavo.strategies.beliefs.thrift import worthwhile_losses

from . import AutoConfig

AIMS = np.concatenate([np.linspace(0.7, 1.3, 25), np.geomspace(0.01, 0.65, 10)])
"""Believed losses that a recipe is sought for.

Closely around the goal, and coarsely far below it.
"""

HIGHEST_AIM = 1.3

PRICES = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0)
"""Of what a budget limits, in shares of the cost."""

LOWERED = 0.7  # times the aim, for each miss after the first two

LAST, STEEPLY = 3, 0.1
"""With fewer evaluations left and none that passed, each lowers the aim to that share."""

BLIND = 0.5  # standard deviation of a loss, in tolerated losses, before a trial has told any

STRIKES = 2  # failed trials after which a family that never worked is avoided

GUESSED = 10.0  # tolerated losses that the worst choices are believed to lose before any trial

FAR_OFF = 1.5
"""Tolerated losses from which on nothing else within the budgets is believed to pass either, where
the least lossy recipe has so many: sensitivities are not so wrong."""

NOWHERE = 1e-300  # keeps a quotient finite whose divisor is 0


class Mixer:
    """Proposes recipes under one alternative of transforms, and learns from their trials.

    Args:
        problem: Gives the space and the sensitivities.
        config: Of the strategy.
        limits: What recipes may use.
        costs: What is believed of the objective.
        transforms: The alternative.
        seen: Trials so far under it.
        earlier: Trials of earlier runs under it: believed, and no candidates.

    Attributes:
        seen: All of them, by picks.
        allocation: What choices are believed to lose, in the unit of the sensitivities.
    """

    def __init__(
        self,
        problem: Problem,
        config: AutoConfig,
        limits: Limits,
        costs: CostBelief,
        transforms: Transforms,
        seen: Mapping[Picks, Trial],
        earlier: Mapping[Picks, Trial],
    ) -> None:
        self._problem = problem
        self._units = problem.space.tunable
        self._config = config
        self._limits = limits
        self._costs = costs
        self.seen = dict(seen)
        self._earlier = dict(earlier)
        self.allocation = self._asked(transforms)
        self._proxies = self._scaled()
        self._belief = self._rebuilt(self._proxies)
        self._misses = 0
        self._left = LAST
        self._strikes = STRIKES
        self._avoided: set[Family] = set()

    def propose(self, best: Trial | None, left: int) -> Picks | None:
        """Return the recipe most worth an evaluation, or None where none is.

        Where nothing within the budgets is believed to reach the goal, or one evaluation is left to
        find out, that is what loses least within them: a goal out of reach gives no budget away.

        Args:
            best: The best passing trial so far; None before the first.
            left: Evaluations.
        """
        self._left = left
        if best is not None or not self._problem.budgets:
            return self._worth_most(best)
        known = self.least_trial()
        if known is not None and _loss(known) > FAR_OFF:
            return None
        least = self.least_loss()
        untried = least if least not in self.seen else None
        if untried is not None and left <= 1:
            return untried
        return self._worth_most(best) or untried

    def _worth_most(self, best: Trial | None) -> Picks | None:
        while True:
            proposed = self._best_bet(best)
            if proposed is not None or not self._avoided:
                return proposed
            # They may have failed by chance, and get another chance before the search ends.
            self._strikes += 1
            self._avoid_suspects()

    def learn(self, picks: Picks, trial: Trial) -> None:
        """Take the trial of a proposed recipe."""
        self.seen[picks] = trial
        if trial.state == "failed":
            self._avoid_suspects()
            return
        # What overran a budget and not the loss says that limits were believed too wide, and these
        # have learnt it.
        self._misses = 0 if trial.margin >= 0 else self._misses + 1
        self._belief.observe(picks, _loss(trial))

    def _asked(self, transforms: Transforms) -> Allocation:
        """Return the loss of every choice that is worth it; the others are out of reach."""
        reachable = self._limits.reachable(self._costs.costs())
        listed = shortlist(self._problem, reachable, transforms)
        for place, kept in enumerate(listed):
            tried = {picks[place] for picks in {**self.seen, **self._earlier}}
            listed[place] = sorted(tried.union(kept))
        kind = self._config.sensitivity
        found = worthwhile_losses(self._problem, kind, listed, transforms)
        losses = []
        for unit, kept, own in zip(self._units, listed, found, strict=True):
            row = np.full(len(unit.choices), np.nan)
            row[kept] = own
            losses.append(row)
        return Allocation(self._problem, kind, transforms, losses)

    def _scaled(self) -> list[np.ndarray]:
        """Return the proxy loss of every choice, scaled to a mean of 1; hopeless where unknown."""
        losses = self.allocation.losses
        flat = np.concatenate(losses)
        scale = max(float(flat[np.isfinite(flat)].mean()), NOWHERE)
        return [np.where(np.isfinite(own), own / scale, HOPELESS) for own in losses]

    def least_loss(self) -> Picks | None:
        """Return what is believed to lose least within the budgets.

        None where there are none, or where what is left of them can be kept by nothing.
        """
        if not self._problem.budgets:
            return None
        try:
            return self.allocation.least(self._limits)
        except ConfigError:
            return None

    def least_trial(self) -> Trial | None:
        """Return the finished trial of what is believed to lose least within the budgets."""
        least = self.least_loss()
        trial = self.seen.get(least) if least is not None else None
        return None if trial is None or trial.state == "failed" else trial

    def conclusion(self) -> str:
        """Say why nothing is proposed although nothing passed."""
        tried = self.least_trial()
        if tried is None:
            return "no recipe of this space is believed to reach the goal"
        return (
            "no recipe within the budget is believed to reach the goal; "
            f"trial {tried.number} is believed to lose least within it"
        )

    def _best_bet(self, best: Trial | None) -> Picks | None:
        costs = self._costs.costs()
        by_choice = padded(costs)
        units = np.arange(len(costs))
        if best is None:
            best_cost = sum(float(cost[-1]) for cost in costs)
        else:
            held = picks_of(self._problem.space, best.recipe)
            best_cost = float(by_choice[units, held].sum())
        best_cost = max(best_cost, NOWHERE)
        solutions = self._solutions(costs, self._belief.losses())
        nothing = tuple(len(cost) - 1 for cost in costs)
        worth: dict[Picks, float] = {}
        for aim in self._aims(best):
            picks = self._solved(solutions, aim, nothing)
            if picks in self.seen or picks in worth or picks == nothing:
                continue
            cost = float(by_choice[units, picks].sum())
            saving = 1.0 - cost / best_cost
            worth[picks] = self._chance(picks, aim) * saving
        if not worth:
            return None
        found = max(worth, key=lambda picks: (worth[picks], picks))
        is_too_little = best is not None and worth[found] < self._config.worthwhile
        return None if is_too_little else found

    def _aims(self, best: Trial | None) -> list[float]:
        """Return the believed losses that recipes are sought for now."""
        # With each miss the aim is lowered, and steeply at the end, so that a goal that
        # can be reached is reached whatever the proxies are worth.
        lowered = 1.0
        if best is None:
            lowered = LOWERED ** max(0, self._misses - 2)
            # The first misses of a belief that earlier runs have taught are near ones.
            if self._misses > 2:
                lowered *= STEEPLY ** max(0, LAST - self._left)
        return [float(aim) for aim in AIMS * lowered]

    def _solved(
        self, solutions: Sequence[LossTable | HullTable], aim: float, nothing: Picks
    ) -> Picks:
        """Return the cheapest recipe of a believed loss that keeps the limits, else all float."""
        for solution in solutions:
            found = solution.pick(aim)
            if found is None:
                continue
            picks = tuple(found)
            if self._limits.fits(picks):
                return picks
        return nothing

    def _chance(self, picks: Picks, aim: float) -> float:
        """Return the probability with which a recipe is believed to pass."""
        mean, deviation = aim, BLIND
        if self._belief.known:
            mean, deviation = self._belief.predict(picks)
        return NormalDist(mean, deviation).cdf(1.0)

    def _solutions(
        self, costs: list[np.ndarray], losses: list[np.ndarray]
    ) -> list[LossTable | HullTable]:
        """Return the knapsack over losses.

        Under budgets several, with ever higher prices on what is limited.
        """
        if not self._limits:
            return [table(costs, losses, HIGHEST_AIM)]
        shares = []
        for uses, limit in self._limits.rows():
            shares.append([use / limit for use in uses])
        whole = sum(float(cost.max()) for cost in costs)
        solutions = []
        for price in PRICES:
            priced = []
            for row, cost in enumerate(costs):
                used = sum(uses[row] for uses in shares)
                priced.append(cost / whole + price * used)
            solutions.append(table(priced, losses, HIGHEST_AIM))
        return solutions

    def _avoid_suspects(self) -> None:
        """Put what seems to be broken out of reach, and believe anew what is left."""
        self._avoided = self._suspects()
        barred = []
        for unit, proxy in zip(self._units, self._proxies, strict=True):
            is_avoided = [family(unit, s) in self._avoided for s in unit.choices]
            barred.append(np.where(is_avoided, HOPELESS, proxy))
        self._belief = self._rebuilt(barred)

    def _suspects(self) -> set[Family]:
        """Return the families that so many failed trials used, and no finished one."""
        failures = Counter[Family]()
        worked: set[Family] = set()
        for picks, trial in self.seen.items():
            used = set(families(self._problem, picks))
            if trial.state == "failed":
                failures.update(used)
            else:
                worked |= used
        suspects = set()
        for of, count in failures.items():
            _, mode, _ = of
            never_worked = of not in worked and mode != "float"
            if count >= self._strikes and never_worked:
                suspects.add(of)
        return suspects

    def _rebuilt(self, proxies: Sequence[np.ndarray]) -> LossBelief:
        """Return the belief that all trials so far lead to."""
        belief = LossBelief(proxies)
        for picks, trial in {**self._earlier, **self.seen}.items():
            if trial.state != "failed":
                belief.observe(picks, _loss(trial))
        if not belief.known:
            belief.guess(GUESSED)
        return belief


def _loss(trial: Trial) -> float:
    """Return a trial's loss in tolerated losses."""
    if math.isnan(trial.margin):
        return COLLAPSED
    return min(1.0 - trial.margin, COLLAPSED)
