"""Budget: the least believed loss within hard limits of average bits, size or latency, by integer programming."""

from __future__ import annotations

import numpy as np

from octavo.core.errors import ConfigError
from octavo.core.knapsack import exact
from octavo.core.parts import PartConfig
from octavo.core.recipe import Recipe
from octavo.core.strategy import Problem
from octavo.core.trial import Trial

from . import BudgetConfig
from .belief import OVERHEAD, CostBelief, ratio
from .losses import Transforms, pair_losses, shortlist
from .sequential import Search, Sequential

ROUNDS = 6  # corrections of a limit that the measured artifact overran


class Budget(Sequential):
    """Solves for the limits, has the result measured, and solves again with tighter ones where the artifact overran them.

    ``bits`` is the parameter-weighted average of weight bits; ``size`` and ``latency`` are shares of the float model's and
    are checked against what was measured. Units (groups that share a scheme) take one decision.

    Raises:
        ConfigError: If there is no budget, or no choice keeps it; the message says what is the least possible.
    """

    config: BudgetConfig

    def __init__(self, config: PartConfig, problem: Problem) -> None:
        super().__init__(config, problem)
        if not problem.budgets:
            raise ConfigError("the budget strategy needs a budget: set budgets.bits, budgets.size or budgets.latency")

    def search(self) -> Search:
        """One solution for each proxy, and corrections where a budget is overrun."""
        budgets = dict(self.problem.budgets)
        kept: list[Trial] = []
        for transforms in self.problem.space.transforms:
            for kind in self.config.sensitivities:
                limits = dict(budgets)
                for _ in range(ROUNDS):
                    recipe = self._solve(kind, limits, transforms)
                    trial = yield from self.one(recipe)
                    over = {n: ratio(trial, n) / budgets[n] for n in ("size", "latency") if n in budgets and np.isfinite(ratio(trial, n))}
                    if all(o <= 1.0 for o in over.values()):
                        kept.append(trial)
                        break
                    limits |= {n: limits[n] / o * 0.999 for n, o in over.items() if o > 1.0}
        shown = ", ".join(f"{k} {v:g}" for k, v in budgets.items())
        if not kept:
            self.note = f"no recipe kept the budget ({shown}) when it was measured"
        else:
            best = max(kept, key=lambda t: t.margin)
            self.note = f"within {shown}: trial {best.number}" + (
                "" if best.passed else ", which misses the accuracy goal; raise the budget"
            )

    def _solve(self, kind: str, limits: dict[str, float], transforms: Transforms) -> Recipe:
        space = self.problem.space
        units = space.tunable
        sizes = [np.array([u.weight_bytes(s) for s in u.choices]) for u in units]
        listed = shortlist(self.problem, sizes, transforms)
        flat = np.array(
            pair_losses(self.problem, kind, [(u, u.choices[i]) for u, kept in zip(units, listed, strict=True) for i in kept], transforms)
        )
        worst = 1e3 * max(float(flat[np.isfinite(flat)].max(initial=0.0)), 1e-300)
        losses = [np.full(len(u.choices), worst) for u in units]
        for row, kept, found in zip(losses, listed, np.split(flat, np.cumsum([len(k) for k in listed])[:-1]), strict=True):
            row[kept] = np.where(np.isfinite(found), found, worst)
        fixed = [u for u in space.units if not u.tunable]
        rows: list[tuple[list[np.ndarray], float]] = []
        if "bits" in limits:
            total = sum(u.parameters for u in units)
            rows.append(([np.array([s.weight_bits * u.parameters for s in u.choices], dtype=float) for u in units], limits["bits"] * total))
        if "size" in limits:
            float_bytes = sum(4.0 * u.parameters for u in space.units)
            room = limits["size"] * float_bytes - sum(4.0 * u.parameters for u in fixed)
            rows.append((sizes, room))
        if "latency" in limits:
            belief = CostBelief(space, "latency")
            for trial in self.trials:
                belief.observe(tuple(u.choices.index(trial.recipe[u.ops[0]]) for u in units), trial)
            rows.append((belief.costs(), limits["latency"] - OVERHEAD))
        picks = exact(losses, rows)
        return space.recipe({u.name: u.choices[i] for u, i in zip(units, picks, strict=True)}, transforms)
