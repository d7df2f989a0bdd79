"""Budget: the least believed loss within hard limits of average bits, size or latency."""

from __future__ import annotations

import numpy as np

from octavo.core.contract.parts import PartConfig
from octavo.core.contract.strategy import Foresight, Problem
from octavo.core.errors import ConfigError
from octavo.core.numerics.knapsack import exact
from octavo.strategies.beliefs.limits import Limits
from octavo.strategies.beliefs.losses import (
    Transforms,
    listed_losses,
    offers,
    shortlist,
)
from octavo.strategies.beliefs.picks import Picks, chosen, weight_bytes

from . import BudgetConfig, Proxy
from .sequential import Search, Sequential

ROUNDS = 6  # solutions under limits that the measured artifact corrected

CAUTION = (
    4.0  # times the worst loss that is known: what a choice counts whose probe failed
)

GRADIENT_KINDS = ("gradient", "hessian_trace")

Losses = list[np.ndarray]


class Budget(Sequential):
    """Solves an integer program for the limits, has the result measured, and solves it again.

    Each solution is under what the artifact before taught about the limits. ``bits`` is the
    parameter-weighted average of weight bits; ``size`` and ``latency`` are shares of the float
    model's and are checked against what was measured. Units (groups that share a scheme) take one
    decision.

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
        self._kinds = [
            k for k in asked if k not in GRADIENT_KINDS or offers(problem, k)
        ]
        if not self._kinds:
            raise ConfigError(
                f"sensitivities {', '.join(asked)} need gradients, which {problem.space.backend} "
                "does not offer; add output_distance or weight_error"
            )

    def search(self) -> Search:
        """One solution for each proxy, and corrections where a budget is overrun or has room."""
        limits = Limits(self.problem)
        every = [(t, k) for t in self.space.transforms for k in self._kinds]
        for number, (transforms, kind) in enumerate(every, 1):
            left = len(every) - number
            self.ahead = Foresight(ROUNDS * (1 + left), probes=left > 0)
            yield from self._solutions(kind, transforms, limits)
        self.note = self._concluded()
        if left_out := [k for k in self.config.sensitivities if k not in self._kinds]:
            self.note += f" ({', '.join(left_out)}: no gradients are offered)"

    def _solutions(self, kind: Proxy, transforms: Transforms, limits: Limits) -> Search:
        """Solve under what was learnt of the limits, until the solution is known."""
        known, cautious = self._losses(kind, transforms)
        for _ in range(ROUNDS):
            try:
                picks = _solved(known, cautious, limits)
            except ConfigError:
                # With trials behind it, it is the corrected limits that nothing keeps.
                if not self.trials:
                    raise
                return
            recipe = self.space.recipe(chosen(self.space, picks), transforms)
            if recipe.digest in self.known:
                return
            limits.observe(picks, (yield from self.one(recipe)))

    def _concluded(self) -> str:
        shown = ", ".join(f"{k} {v:g}" for k, v in self.problem.budgets.items())
        kept = [t for t in self.trials if t.state == "complete" and not t.over]
        if not kept:
            return f"no recipe kept the budget ({shown}) when it was measured"
        best = max(kept, key=lambda t: t.margin)
        missed = (
            "" if best.passed else ", which misses the accuracy goal; raise the budget"
        )
        return f"within {shown}: trial {best.number}{missed}"

    def _losses(self, kind: Proxy, transforms: Transforms) -> tuple[Losses, Losses]:
        """Return the believed loss of every choice twice.

        First infinite for those that are not worth it, cannot be carried out or whose probe failed;
        then with what could not be found out taken for worse than all that could.
        """
        space = self.space
        listed = shortlist(self.problem, weight_bytes(space), transforms)
        found = listed_losses(self.problem, kind, listed, transforms)
        flat = np.concatenate(found)
        worst = flat[np.isfinite(flat)].max(initial=0.0)
        known = [np.full(len(u.choices), np.inf) for u in space.tunable]
        cautious = [row.copy() for row in known]
        for row, careful, kept, losses in zip(
            known, cautious, listed, found, strict=True
        ):
            row[kept] = losses
            careful[kept] = np.where(
                np.isfinite(losses), losses, CAUTION * worst or 1.0
            )
        return known, cautious


def _solved(known: Losses, cautious: Losses, limits: Limits) -> Picks:
    """Return the choices of least loss within the limits.

    What could not be probed is taken only where nothing else fits.

    Raises:
        ConfigError: If nothing fits.
    """
    try:
        return tuple(exact(known, limits.rows()))
    except ConfigError:
        return tuple(exact(cautious, limits.rows()))
