"""Budget: the least believed loss within hard limits of average bits, size or latency, by integer programming."""

from __future__ import annotations

import numpy as np

from octavo.core.contract.parts import PartConfig
from octavo.core.contract.strategy import Problem
from octavo.core.errors import ConfigError
from octavo.core.numerics.knapsack import exact
from octavo.core.values.scheme import OpScheme

from . import BudgetConfig, Proxy
from .belief import Picks
from .limits import Limits
from .losses import Transforms, offers, pair_losses, shortlist
from .sequential import Search, Sequential

ROUNDS = 6  # solutions under limits that the measured artifact corrected
CAUTION = 4.0  # times the worst loss that is known: what a choice counts whose probe failed
GRADIENT_KINDS = ("gradient", "hessian_trace")


class Budget(Sequential):
    """Solves for the limits, has the result measured, and solves again under what the artifact taught about them.

    ``bits`` is the parameter-weighted average of weight bits; ``size`` and ``latency`` are shares of the float model's and
    are checked against what was measured. Units (groups that share a scheme) take one decision.

    Raises:
        ConfigError: If there is no budget, or no choice keeps it; the message says what is the least possible.
    """

    config: BudgetConfig

    def __init__(self, config: PartConfig, problem: Problem) -> None:
        super().__init__(config, problem)
        if not problem.budgets:
            raise ConfigError(
                "the budget strategy needs a budget: set budgets.bits, budgets.size or budgets.latency"
            )
        self._kinds = [
            k for k in self.config.sensitivities if k not in GRADIENT_KINDS or offers(problem, k)
        ]
        if not self._kinds:
            raise ConfigError(
                f"sensitivities {', '.join(self.config.sensitivities)} need gradients, which {problem.space.backend} does not offer; "
                "add output_distance or weight_error"
            )

    def search(self) -> Search:
        """One solution for each proxy, and corrections where a budget is overrun or more room was found."""
        limits = Limits(self.problem)
        left_out = [k for k in self.config.sensitivities if k not in self._kinds]
        for transforms in self.problem.space.transforms:
            for kind in self._kinds:
                known, cautious = self._losses(kind, transforms)
                for round_ in range(ROUNDS):
                    try:
                        picks = self._solve(known, cautious, limits)
                    except ConfigError:
                        if not round_ and not self.trials:
                            raise
                        break
                    recipe = self.problem.space.recipe(self._choice(picks), transforms)
                    if recipe.digest in self.known:
                        break
                    limits.observe(picks, (yield from self.one(recipe)))
        self.note = self._concluded() + (
            f" ({', '.join(left_out)}: no gradients are offered)" if left_out else ""
        )

    def _concluded(self) -> str:
        shown = ", ".join(f"{k} {v:g}" for k, v in self.problem.budgets.items())
        kept = [t for t in self.trials if t.state == "complete" and not t.over]
        if not kept:
            return f"no recipe kept the budget ({shown}) when it was measured"
        best = max(kept, key=lambda t: t.margin)
        return f"within {shown}: trial {best.number}" + (
            "" if best.passed else ", which misses the accuracy goal; raise the budget"
        )

    def _choice(self, picks: Picks) -> dict[str, OpScheme]:
        return {
            u.name: u.choices[i] for u, i in zip(self.problem.space.tunable, picks, strict=True)
        }

    def _losses(
        self, kind: Proxy, transforms: Transforms
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Return the believed loss of every choice twice.

        First infinite for those that are not worth it, cannot be carried out or whose probe failed; then with what could not
        be found out taken for worse than all that could.
        """
        units = self.problem.space.tunable
        listed = shortlist(
            self.problem,
            [np.array([u.weight_bytes(s) for s in u.choices]) for u in units],
            transforms,
        )
        pairs = [(u, u.choices[i]) for u, kept in zip(units, listed, strict=True) for i in kept]
        flat = np.array(pair_losses(self.problem, kind, pairs, transforms))
        losses = [np.full(len(u.choices), np.inf) for u in units]
        for row, kept, found in zip(
            losses, listed, np.split(flat, np.cumsum([len(k) for k in listed])[:-1]), strict=True
        ):
            row[kept] = found
        worst = flat[np.isfinite(flat)].max(initial=0.0)
        cautious = [row.copy() for row in losses]
        for row, kept in zip(cautious, listed, strict=True):
            row[kept] = np.where(np.isfinite(row[kept]), row[kept], CAUTION * worst or 1.0)
        return losses, cautious

    @staticmethod
    def _solve(known: list[np.ndarray], cautious: list[np.ndarray], limits: Limits) -> Picks:
        """Return the choices of least loss within the limits; what could not be probed only where nothing else fits."""
        try:
            return tuple(exact(known, limits.rows()))
        except ConfigError:
            return tuple(exact(cautious, limits.rows()))
