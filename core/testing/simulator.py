"""Simulated tuning problems with a known optimum, to test and compare strategies on, yours too.

```python
from octavo.core.testing.simulator import simulate

simulation = simulate(64, coupling=0.5, noise=0.02)
strategy = card.build(None, simulation.problem())
result = simulation.search(strategy, limit=20)
print(result.best_cost / simulation.optimum, len(result.trials))
```

The true loss of a recipe, as a share of what is tolerated, is the sum of its units' losses plus,
inside each block, a coupling of each pair: J * sqrt(loss * loss). A score is 1 - 0.01 * loss, and
it collapses at 0 as a real one does. Sensitivities are the losses alone (no coupling), in another
unit, and as wrong as ``proxy_noise`` says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from octavo.core.contract.strategy import Problem, Strategy, Wait
from octavo.core.values.budgets import overruns
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import OpScheme, PartChoice
from octavo.core.values.space import TuningSpace
from octavo.core.values.trial import Measurement, Trial

from .drawing import draw_couplings, draw_losses, normal, uniform, unit_of
from .optimum import Blocks

STEP = 0.01
"""Score lost at the tolerated loss."""

# What real sensitivities are like, by kind: the error of the logarithm in multiples of
# ``proxy_noise``, the power of the true loss that they follow, and their unit.
PROXIES = {
    "output_distance": (1.0, 1.0, 37.0),
    "weight_error": (4.0, 0.8, 0.02),
    "hessian": (3.0, 0.9, 5.0),
}


@dataclass(frozen=True)
class Search:
    """What a strategy did.

    Attributes:
        trials: In order, numbered from 1.
        best_cost: The least cost of a passing trial; inf where none passed.
        best_at: Number of that trial, 0 where none passed.
        ended: The strategy ended by itself.
    """

    trials: tuple[Trial, ...]
    best_cost: float
    best_at: int
    ended: bool


class SimulatedSensitivity:
    """Single-unit losses, scaled and wrong by the simulation's ``proxy_noise``.

    Attributes:
        asked: Distinct pairs by kind: each ``output_distance`` stands for one run over a few
            batches.
    """

    def __init__(
        self, simulation: Simulation, transforms: tuple[PartChoice, ...] = ()
    ) -> None:
        self._simulation = simulation
        self._transforms = transforms
        self.asked: dict[str, set[tuple[str, OpScheme]]] = {}

    def __call__(
        self, kind: str, pairs: Sequence[tuple[str, OpScheme]]
    ) -> Sequence[float]:
        """Return one loss >= 0 for each (unit name, scheme)."""
        self.asked.setdefault(kind, set()).update(pairs)
        return [self._one(kind, name, scheme) for name, scheme in pairs]

    def _one(self, kind: str, name: str, scheme: OpScheme) -> float:
        spread, power, unit = PROXIES[kind]
        simulation = self._simulation
        loss = simulation.loss_of(name, scheme, self._transforms)
        drawn = normal(f"{simulation.seed} {kind} {name} {scheme}")
        wrong = np.exp(spread * simulation.proxy_noise * drawn)
        return float(unit * loss**power * wrong)


@dataclass(frozen=True)
class Simulation:
    """One simulated problem. Make it with :func:`simulate`.

    Attributes:
        space: Units with four choices each.
        losses: Unit name -> loss of each choice, as a share of the tolerated loss.
        couplings: (unit, unit) -> J, within blocks.
        factors: For each alternative of ``space.transforms``: what it multiplies the losses with.
        noise: Standard deviation of a score, as a share of the tolerated loss. One recipe always
            has one score.
        failures: Share of recipes whose trial fails.
        proxy_noise: Standard deviation of the logarithm of a sensitivity.
        seed: Of everything.
    """

    space: TuningSpace
    losses: Mapping[str, np.ndarray]
    couplings: Mapping[tuple[str, str], float]
    factors: tuple[float, ...] = (1.0,)
    noise: float = 0.0
    failures: float = 0.0
    proxy_noise: float = 0.1
    seed: int = 0
    objective: str = field(default="size")

    def problem(
        self,
        *,
        seed: int = 0,
        stop_at_goal: bool = False,
        sensitivity: bool = True,
        **budgets: float,
    ) -> Problem:
        """Return what a strategy is given.

        Each call has its own sensitivity service, which counts what it is asked.
        """
        service = SimulatedSensitivity(self) if sensitivity else None
        return Problem(
            self.space, (self.objective,), seed, service, stop_at_goal, budgets
        )

    def loss_of(
        self, unit: str, scheme: OpScheme, transforms: tuple[PartChoice, ...] = ()
    ) -> float:
        """Return the true loss of one unit under one scheme, all others in float."""
        choices = self.space.by_name[unit].choices
        return float(self.losses[unit][choices.index(scheme)]) * self._factor(
            transforms
        )

    def _factor(self, transforms: tuple[PartChoice, ...]) -> float:
        return self.factors[self.space.transforms.index(transforms)]

    def loss(self, recipe: Recipe) -> float:
        """Return the true loss, without noise, as a share of the tolerated one."""
        alone = {}
        for unit in self.space.units:
            scheme = recipe[unit.ops[0]]
            choice = unit.choices.index(scheme)
            losses = self.losses[unit.name]
            alone[unit.name] = float(losses[choice])
        together = 0.0
        for (a, b), coupling in self.couplings.items():
            together += coupling * np.sqrt(alone[a] * alone[b])
        total = sum(alone.values()) + together
        factor = self._factor(recipe.transforms)
        return float(total * factor)

    def cost(self, recipe: Recipe) -> float:
        """Return the objective of a recipe."""
        return self.space.weight_bytes(recipe)

    def trial(
        self, number: int, recipe: Recipe, budgets: Mapping[str, float] | None = None
    ) -> Trial:
        """Evaluate a recipe as the loop would, under the budgets of a problem if they are given."""
        tag = f"{self.seed} {recipe.digest}"
        # The float model never fails and has no noise: it is what all else is compared with.
        is_float = not len(recipe)
        if not is_float and uniform(f"fail {tag}") < self.failures:
            return Trial(
                number, recipe, "failed", error="RuntimeError: simulated failure"
            )
        noise = 0.0 if is_float else self.noise * normal(f"noise {tag}")
        score = max(0.0, 1.0 - STEP * (self.loss(recipe) + noise))
        margin = 1.0 - (1.0 - score) / STEP
        measured = {self.objective: self._measured(recipe)}
        over = overruns(budgets or {}, self.space, recipe.schemes, measured)
        return Trial(
            number,
            recipe,
            metrics={"score": score},
            passed=margin >= 0 and not over,
            margin=margin,
            objectives=measured,
            over=over,
        )

    def _measured(self, recipe: Recipe) -> Measurement:
        cost = self.cost(recipe)
        float_cost = self.cost(Recipe({}, (), self.space.backend))
        return Measurement(cost, cost, cost, "bytes", cost / float_cost)

    def search(self, strategy: Strategy, limit: int) -> Search:
        """Run a strategy as the loop would, one trial at a time."""
        trials: list[Trial] = []
        ended = False
        while len(trials) < limit:
            recipe = strategy.ask()
            if recipe is None:
                ended = True
                break
            if isinstance(recipe, Wait):
                raise RuntimeError("the strategy waits although no trial is pending")
            trial = self.trial(len(trials) + 1, recipe, strategy.problem.budgets)
            trials.append(trial)
            strategy.tell(trial)
        passing = [trial for trial in trials if trial.passed]
        best = min(passing, key=self._cost_of, default=None)
        if best is None:
            return Search(tuple(trials), float("inf"), 0, ended)
        return Search(tuple(trials), self._cost_of(best), best.number, ended)

    def _cost_of(self, trial: Trial) -> float:
        """Return what a trial costs, in bytes as :attr:`optimum`, and not as a share."""
        return trial.objectives[self.objective].cost

    @cached_property
    def optimum(self) -> float:
        """The least cost of any recipe whose true loss is tolerated."""
        return self.cost(self.optimal_recipe)

    @cached_property
    def optimal_recipe(self) -> Recipe:
        """A recipe of that cost, by integer programming over whole blocks (gap 1e-4)."""
        best = int(np.argmin(self.factors))
        blocks = Blocks(self.space, self.losses, self.couplings, self.factors[best])
        return self.space.recipe(blocks.cheapest(), self.space.transforms[best])


def simulate(
    units: int,
    *,
    coupling: float = 0.0,
    noise: float = 0.0,
    failures: float = 0.0,
    proxy_noise: float = 0.1,
    transforms: int = 0,
    pressure: float = 6.0,
    seed: int = 0,
) -> Simulation:
    """Make a simulated problem.

    Args:
        units: Number of units; blocks hold four.
        coupling: Strength of the interactions: J is uniform in [0, 2 * coupling] for each pair of a
            block.
        noise: Noise of the score, as a share of the tolerated loss.
        failures: Share of recipes whose trial fails.
        proxy_noise: Error of the sensitivities (standard deviation of their logarithm).
        transforms: Number of model-wide transforms; one of them halves the losses, the others do
            harm.
        pressure: Loss of the second-smallest scheme everywhere, in tolerated losses: how far
            all-int4 is from passing.
        seed: Of everything.
    """
    random = np.random.default_rng([seed, units])
    # Weights of very different sizes, whole groups of 32.
    groups = np.rint(np.exp(random.normal(6.0, 0.8, units)))
    parameters = 32 * np.maximum(1, groups).astype(int)
    losses = draw_losses(random, units, pressure)
    made = tuple(unit_of(i, int(parameters[i])) for i in range(units))
    couplings = draw_couplings(random, made, coupling) if coupling else {}
    alternatives: list[tuple[PartChoice, ...]] = [()]
    factors = [1.0]
    for i in range(transforms):
        choice = PartChoice(kind=f"transform{i}")
        alternatives.append((choice,))
        helps = i == transforms - 1
        factors.append(0.5 if helps else float(random.uniform(1.0, 2.0)))
    return Simulation(
        TuningSpace("simulated", made, tuple(alternatives)),
        {unit.name: losses[i] for i, unit in enumerate(made)},
        couplings,
        tuple(factors),
        noise,
        failures,
        proxy_noise,
        seed,
    )


__all__ = ["Search", "SimulatedSensitivity", "Simulation", "simulate"]
