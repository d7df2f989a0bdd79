"""Simulated tuning problems with a known optimum: what strategies are tested and compared on, yours too.

```python
from octavo.core.testing.simulator import simulate

simulation = simulate(64, coupling=0.5, noise=0.02)
strategy = card.build(None, simulation.problem())
result = simulation.search(strategy, limit=20)
print(result.best_cost / simulation.optimum, len(result.trials))
```

The true loss of a recipe, as a share of what is tolerated, is the sum of its units' losses plus, inside each block, a
coupling of each pair: J * sqrt(loss * loss). A score is 1 - 0.01 * loss, and it collapses at 0 as a real one does. Sensitivities
are the losses alone (no coupling), in another unit, and as wrong as ``proxy_noise`` says.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from octavo.core.contract.strategy import Problem, Strategy, Wait
from octavo.core.numerics.knapsack import exact
from octavo.core.values.budgets import overruns
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import FLOAT, OpScheme, PartChoice, QuantSpec
from octavo.core.values.space import TuningSpace, Unit
from octavo.core.values.trial import Measurement, Trial

BLOCK = 4
SCHEMES = (
    OpScheme(mode="weight_only", weight=QuantSpec(dtype="int3", granularity="group:32")),
    OpScheme(mode="weight_only", weight=QuantSpec(dtype="int4", granularity="group:32")),
    OpScheme(mode="weight_only", weight=QuantSpec(dtype="int8", granularity="channel")),
    FLOAT,
)
STEP = 0.01  # score lost at the tolerated loss


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
        asked: Number of distinct pairs by kind: each ``output_distance`` stands for one run over a few batches.
    """

    def __init__(self, simulation: Simulation, transforms: tuple[PartChoice, ...] = ()) -> None:
        self._simulation = simulation
        self._transforms = transforms
        self.asked: dict[str, set[tuple[str, OpScheme]]] = {}

    def __call__(self, kind: str, pairs: Sequence[tuple[str, OpScheme]]) -> Sequence[float]:
        """Return one loss >= 0 for each (unit name, scheme)."""
        spread, power, unit = {
            "output_distance": (1.0, 1.0, 37.0),
            "weight_error": (4.0, 0.8, 0.02),
            "hessian": (3.0, 0.9, 5.0),
        }[kind]
        self.asked.setdefault(kind, set()).update(pairs)
        found = []
        for name, scheme in pairs:
            loss = self._simulation.loss_of(name, scheme, self._transforms)
            wrong = np.exp(
                spread
                * self._simulation.proxy_noise
                * _draw(f"{self._simulation.seed} {kind} {name} {scheme}")
            )
            found.append(float(unit * loss**power * wrong))
        return found


@dataclass(frozen=True)
class Simulation:
    """One simulated problem. Make it with :func:`simulate`.

    Attributes:
        space: Units with four choices each.
        losses: Unit name -> loss of each choice, as a share of the tolerated loss.
        couplings: (unit, unit) -> J, within blocks.
        factors: For each alternative of ``space.transforms``: what it multiplies the losses with.
        noise: Standard deviation of a score, as a share of the tolerated loss. One recipe always has one score.
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
        """Return what a strategy is given. Each call has its own sensitivity service, which counts what it is asked."""
        service = SimulatedSensitivity(self) if sensitivity else None
        return Problem(self.space, (self.objective,), seed, service, stop_at_goal, budgets)

    def loss_of(
        self, unit: str, scheme: OpScheme, transforms: tuple[PartChoice, ...] = ()
    ) -> float:
        """Return the true loss of one unit under one scheme, all others in float."""
        choices = self.space.by_name[unit].choices
        return float(self.losses[unit][choices.index(scheme)]) * self._factor(transforms)

    def _factor(self, transforms: tuple[PartChoice, ...]) -> float:
        return self.factors[self.space.transforms.index(transforms)]

    def loss(self, recipe: Recipe) -> float:
        """Return the true loss, without noise, as a share of the tolerated one."""
        alone = {
            u.name: float(self.losses[u.name][u.choices.index(recipe[u.ops[0]])])
            for u in self.space.units
        }
        together = sum(j * np.sqrt(alone[a] * alone[b]) for (a, b), j in self.couplings.items())
        return float((sum(alone.values()) + together) * self._factor(recipe.transforms))

    def cost(self, recipe: Recipe) -> float:
        """Return the objective of a recipe."""
        return self.space.weight_bytes(recipe)

    def trial(
        self, number: int, recipe: Recipe, budgets: Mapping[str, float] | None = None
    ) -> Trial:
        """Evaluate a recipe as the loop would, under the budgets of a problem if they are given."""
        tag = f"{self.seed} {recipe.digest}"
        if len(recipe) and _uniform(f"fail {tag}") < self.failures:
            return Trial(number, recipe, "failed", error="RuntimeError: simulated failure")
        loss = self.loss(recipe) + (self.noise * _draw(f"noise {tag}") if len(recipe) else 0.0)
        score = max(0.0, 1.0 - STEP * loss)
        margin = 1.0 - (1.0 - score) / STEP
        cost = self.cost(recipe)
        measured = {
            self.objective: Measurement(
                cost, cost, cost, "bytes", cost / self.cost(Recipe({}, (), self.space.backend))
            )
        }
        over = overruns(budgets or {}, self.space, recipe.schemes, measured)
        passed = margin >= 0 and not over
        return Trial(
            number,
            recipe,
            metrics={"score": score},
            passed=passed,
            margin=margin,
            objectives=measured,
            over=over,
        )

    def search(self, strategy: Strategy, limit: int) -> Search:
        """Run a strategy as the loop would, one trial at a time."""
        trials: list[Trial] = []
        ended = False
        while len(trials) < limit and not ended:
            recipe = strategy.ask()
            if recipe is None:
                ended = True
            elif isinstance(recipe, Wait):
                raise RuntimeError("the strategy waits although no trial is pending")
            else:
                trials.append(self.trial(len(trials) + 1, recipe, strategy.problem.budgets))
                strategy.tell(trials[-1])
        passing = [t for t in trials if t.passed]
        best = min(passing, key=self._cost_of, default=None)
        least = self._cost_of(best) if best else float("inf")
        return Search(tuple(trials), least, best.number if best else 0, ended)

    def _cost_of(self, trial: Trial) -> float:
        """Return what a trial costs, in the units of :attr:`optimum` and not as a share of the float model's."""
        return trial.objectives[self.objective].cost

    @cached_property
    def optimum(self) -> float:
        """The least cost of any recipe whose true loss is tolerated: integer programming over whole blocks, gap 1e-4."""
        return self.cost(self.optimal_recipe)

    @cached_property
    def optimal_recipe(self) -> Recipe:
        """A recipe of that cost. Couplings stay inside blocks, so that a block's combinations are exact choices."""
        best = int(np.argmin(self.factors))
        costs, losses, names = [], [], []
        for block in self._blocks():
            rows = self._combinations(block, self.factors[best])
            names.append((block, [r[2] for r in rows]))
            costs.append(np.array([r[0] for r in rows]))
            losses.append(np.array([r[1] for r in rows]))
        picks = exact(costs, [(losses, 1.0)], gap=1e-4)
        choice = {
            u.name: u.choices[i]
            for (block, rows), p in zip(names, picks, strict=True)
            for u, i in zip(block, rows[p], strict=True)
        }
        return self.space.recipe(choice, self.space.transforms[best])

    def _blocks(self) -> list[tuple[Unit, ...]]:
        if not self.couplings:
            return [(u,) for u in self.space.units]
        return [
            tuple(group) for _, group in itertools.groupby(self.space.units, key=lambda u: u.block)
        ]

    def _combinations(
        self, block: tuple[Unit, ...], factor: float
    ) -> list[tuple[float, float, tuple[int, ...]]]:
        """Return (cost, loss, choices) of a block's combinations that no other one beats."""
        rows = []
        for picks in itertools.product(*(range(len(u.choices)) for u in block)):
            alone = [float(self.losses[u.name][i]) for u, i in zip(block, picks, strict=True)]
            together = sum(
                self.couplings.get((block[i].name, block[j].name), 0.0)
                * np.sqrt(alone[i] * alone[j])
                for i, j in itertools.combinations(range(len(block)), 2)
            )
            cost = sum(u.weight_bytes(u.choices[i]) for u, i in zip(block, picks, strict=True))
            rows.append((cost, float(sum(alone) + together) * factor, picks))
        rows.sort()
        kept: list[tuple[float, float, tuple[int, ...]]] = []
        for row in rows:
            if not kept or row[1] < kept[-1][1]:
                kept.append(row)
        return kept


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
        coupling: Strength of the interactions: J is uniform in [0, 2 * coupling] for each pair of a block.
        noise: Noise of the score, as a share of the tolerated loss.
        failures: Share of recipes whose trial fails.
        proxy_noise: Error of the sensitivities (standard deviation of their logarithm).
        transforms: Number of model-wide transforms; one of them halves the losses, the others do harm.
        pressure: Loss of the second-smallest scheme everywhere, in tolerated losses: how far all-int4 is from passing.
        seed: Of everything.
    """
    random = np.random.default_rng([seed, units])
    parameters = 32 * np.maximum(1, np.rint(np.exp(random.normal(6.0, 0.8, units)))).astype(int)
    base = np.exp(
        random.normal(0.0, 1.5, units)
    )  # a few units carry most of the loss, as in real networks
    jitter = np.exp(random.normal(0.0, 0.3, (units, 3)))
    raw = base[:, None] * 4.0 ** -np.array([3.0, 4.0, 8.0]) * jitter
    raw[:, :3] = np.sort(raw, axis=1)[:, ::-1]  # fewer bits never hurt less
    losses = np.concatenate([raw / raw[:, 1].sum() * pressure, np.zeros((units, 1))], axis=1)
    made = tuple(
        Unit(
            f"b{i // BLOCK}.u{i}",
            ("linear", "conv")[i % 2],
            (f"b{i // BLOCK}.u{i}",),
            SCHEMES,
            f"b{i // BLOCK}",
            int(parameters[i]),
            32,
        )
        for i in range(units)
    )
    pairs = (
        [(a, b) for a in range(units) for b in range(a + 1, min(units, (a // BLOCK + 1) * BLOCK))]
        if coupling
        else []
    )
    couplings = {
        (made[a].name, made[b].name): float(random.uniform(0, 2 * coupling)) for a, b in pairs
    }
    alternatives = ((), *((PartChoice(kind=f"transform{i}"),) for i in range(transforms)))
    factors = (
        1.0,
        *(
            0.5 if i == transforms - 1 else float(random.uniform(1.0, 2.0))
            for i in range(transforms)
        ),
    )
    space = TuningSpace("simulated", made, alternatives)
    named = {u.name: losses[i] for i, u in enumerate(made)}
    return Simulation(space, named, couplings, factors, noise, failures, proxy_noise, seed)


def _uniform(tag: str) -> float:
    return int.from_bytes(hashlib.sha256(tag.encode()).digest()[:8], "big") / 2**64


def _draw(tag: str) -> float:
    """Return a standard normal number that depends on the tag alone."""
    return float(
        np.random.default_rng(
            int.from_bytes(hashlib.sha256(tag.encode()).digest()[:8], "big")
        ).normal()
    )


__all__ = ["Search", "SimulatedSensitivity", "Simulation", "simulate"]
