"""Budget: the least believed loss within hard limits of average bits, size or latency."""

from __future__ import annotations

import math
from collections.abc import Sequence

from octavo.core.contract.parts import PartConfig
from octavo.core.contract.strategy import (
    Believed,
    Foresight,
    Problem,
    RecipeSensitivity,
)
from octavo.core.errors import ConfigError
from octavo.core.values.trial import Trial
from octavo.strategies.beliefs.allocation import Allocation
from octavo.strategies.beliefs.limits import Limits
from octavo.strategies.beliefs.losses import offers, resolved
from octavo.strategies.beliefs.picks import picks_of
from octavo.strategies.beliefs.together import checked_together

from . import BudgetConfig
from .sequential import Search, Sequential

ROUNDS = 6  # solutions under limits that the measured artifact corrected

GRADIENT_KINDS = ("gradient", "hessian_trace")


class Budget(Sequential):
    """Solves the knapsack for the limits, has the result measured, and solves it again.

    Each solution is under what the artifact before taught about the limits: where these are known
    to the byte, there is one evaluation. ``bits`` is the parameter-weighted average of weight bits;
    ``size`` and ``latency`` are shares of the float model's and are checked against what was
    measured. Units (groups that share a scheme) take one decision.

    Of several kinds of sensitivity and several transforms the recipe is taken whose outputs stay
    nearest to the float model's: scores of recipes that are so alike differ by noise.

    Raises:
        ConfigError: If there is no budget, or no choice keeps it; the message says what is the
            least possible.
    """

    config: BudgetConfig

    def __init__(self, config: PartConfig, problem: Problem) -> None:
        super().__init__(config, problem)
        if not problem.budgets:
            raise ConfigError(
                "the budget strategy needs a budget: set budgets.bits, budgets.size or "
                "budgets.latency"
            )
        asked = self.config.sensitivities
        offered = [k for k in asked if k not in GRADIENT_KINDS or offers(problem, k)]
        if not offered:
            raise ConfigError(
                f"sensitivities {', '.join(asked)} need gradients, which {problem.space.backend} "
                "does not offer; add output_distance or weight_error"
            )
        self._left_out = [kind for kind in asked if kind not in offered]
        kinds = [resolved(problem, kind) for kind in offered]
        self._kinds = tuple(dict.fromkeys(kinds))
        self._taken: Allocation | None = None

    def search(self) -> Search:
        """The nearest of the solutions, and corrections where a budget is overrun or has room."""
        limits = Limits(self.problem)
        self.ahead = Foresight(ROUNDS, probes=True)
        self._taken = self._nearest(limits)
        self.ahead = Foresight(ROUNDS)
        for _ in range(ROUNDS):
            try:
                picks = self._taken.least(limits)
            except ConfigError:
                # With trials behind it, it is the corrected limits that nothing keeps.
                if not self.trials:
                    raise
                break
            recipe = self._taken.recipe(picks)
            if recipe.digest in self.known:
                break
            limits.observe(picks, (yield from self.one(recipe)))
        self.note = self._concluded()
        if self._left_out:
            self.note += f" ({', '.join(self._left_out)}: no gradients are offered)"

    def _nearest(self, limits: Limits) -> Allocation:
        """Return the allocation whose solution's outputs are nearest to the float model's.

        One of each kind and transforms is compared, and one whose losses were taken again where
        they do not add up.
        """
        every = [(t, k) for t in self.space.transforms for k in self._kinds]
        service = self.problem.sensitivity
        if not isinstance(service, RecipeSensitivity):
            return Allocation(self.problem, self._kinds[0], self.space.required)
        found = [Allocation(self.problem, kind, t) for t, kind in every]
        nearest = found[0]
        if len(found) > 1:
            recipes = [each.recipe(each.least(limits)) for each in found]
            distances = list(service.distances(recipes))
            nearest = found[distances.index(min(distances))]
        return checked_together(self.problem, service, nearest, limits)

    def _concluded(self) -> str:
        shown = ", ".join(f"{k} {v:g}" for k, v in self.problem.budgets.items())
        kept = [t for t in self.trials if t.state == "complete" and not t.over]
        if not kept:
            return f"no recipe kept the budget ({shown}) when it was measured"
        best = min(self.narrowed(kept), key=lambda t: (-t.margin, t.number))
        missed = (
            "" if best.passed else ", which misses the accuracy goal; raise the budget"
        )
        return f"within {shown}: trial {best.number} is believed to lose least{missed}"

    def narrowed(self, trials: Sequence[Trial]) -> Sequence[Trial]:
        """Return the trials that are believed to lose least; what is not of this search stays."""
        taken = self._taken
        if taken is None:
            return trials
        losses = {}
        for trial in trials:
            recipe = trial.recipe
            is_own = recipe.digest in self.known and not recipe.recovery
            if is_own and recipe.transforms == taken.transforms and len(recipe):
                losses[trial.number] = taken.loss(picks_of(self.space, recipe))
        least = min(losses.values(), default=math.inf)
        return [t for t in trials if losses.get(t.number, least) <= least]

    def front(self) -> Sequence[Believed]:
        """Return the front of the losses that the search went by."""
        return () if self._taken is None else self._taken.shown()
