"""Bayesian optimisation and its relatives: an Optuna study in memory, asked and told."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.study import StudyDirection
from optuna.trial import TrialState

from octavo.core.contract.parts import PartConfig
from octavo.core.contract.strategy import WAIT, Problem, Strategy, Wait
from octavo.core.errors import MissingFramework
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import FLOAT, OpScheme, PartChoice
from octavo.core.values.space import Unit
from octavo.core.values.trial import Trial

from . import BayesianConfig
from .exhaustive import scale

TRANSFORMS = "transforms"
Point = dict[str, int]
REDRAWS = 20  # the sampler may repeat itself so often before a neighbour is taken in its place
ENUMERABLE = 4096  # up to this many points the untried ones are listed


@dataclass(frozen=True)
class Knob:
    """One decision: units that take the same scheme wherever they offer it.

    Attributes:
        name: Its name in the study.
        units: Who follows it.
        options: Every scheme that one of them offers.
    """

    name: str
    units: tuple[Unit, ...]
    options: tuple[OpScheme, ...]


class Bayesian(Strategy):
    """Samples whole recipes; the objectives are the study's values and the accuracy goal is its constraint.

    With no objective the margin itself is maximised. A recipe is never returned twice: a repeated draw is told its
    known result and drawn again, and after a number of repeats an untried neighbour of the best recipe is taken.

    Raises:
        MissingFramework: If the ``gp`` sampler is asked for and torch is not installed.
    """

    config: BayesianConfig

    def __init__(self, config: PartConfig, problem: Problem) -> None:
        super().__init__(config, problem)
        self._knobs = self._make_knobs()
        sizes = {k.name: len(k.options) for k in self._knobs}
        if len(problem.space.transforms) > 1:
            sizes[TRANSFORMS] = len(problem.space.transforms)
        self._sizes = sizes
        self._size = math.prod(sizes.values())
        self._space: dict[str, BaseDistribution] = {
            n: CategoricalDistribution(range(size)) for n, size in sizes.items()
        }
        self._rng = np.random.default_rng(problem.seed)
        with _quiet():
            directions = [StudyDirection.MINIMIZE] * max(1, len(problem.objectives))
            self._study = optuna.create_study(directions=directions, sampler=self._sampler())
        self._live: dict[str, optuna.Trial] = {}
        self._points: dict[str, Point] = {}
        self._met: set[str] = set()
        self._known: dict[str, Trial] = {}
        self._best: tuple[tuple[float, ...], Point] | None = None
        self._warm: list[Point] | None = None
        self._note = ""

    def _make_knobs(self) -> list[Knob]:
        groups: dict[str, list[Unit]] = {}
        for unit in self.problem.space.tunable:
            name = {
                "type": unit.type,
                "block": f"{unit.block or unit.name}:{unit.type}",
                "op": unit.name,
            }[self.config.over]
            groups.setdefault(name, []).append(unit)
        return [
            Knob(name, tuple(units), tuple(dict.fromkeys(s for u in units for s in u.choices)))
            for name, units in groups.items()
        ]

    def _sampler(self) -> BaseSampler:
        kind, startup, seed = self.config.sampler, self.config.startup, self.problem.seed
        if kind == "gp":
            if find_spec("torch") is None:
                raise MissingFramework(
                    "the gp sampler needs torch: pip install 'octavo[torch]', or take sampler = \"tpe\""
                )
            return GPSampler(seed=seed, n_startup_trials=startup)
        if kind == "nsgaii":
            return NSGAIISampler(seed=seed, population_size=self.config.population)
        if kind == "random":
            return RandomSampler(seed=seed)
        return TPESampler(seed=seed, n_startup_trials=startup)

    def ask(self) -> Recipe | Wait | None:
        """Return the sampler's next recipe that was not returned before; None once every point of the study is known."""
        if self.problem.stop_at_goal and any(
            t.passed and len(t.recipe) for t in self._known.values()
        ):
            self._note = "stopped at the first recipe that reaches the goal"
            return None
        if (
            not self._met
            and self._sizes
            and (first := self._enqueue(dict.fromkeys(self._sizes, 0))) is not None
        ):
            return first
        while self._warm is None or self._warm:
            if self._warm is None:
                self._warm = self._warm_points()
            elif (start := self._enqueue(self._warm.pop(0))) is not None:
                return start
        for _ in range(REDRAWS):
            if len(self._met) >= self._size:
                break
            drawn = self._study.ask(self._space)
            recipe = self._meet({name: int(drawn.params[name]) for name in self._sizes})
            digest = recipe.digest
            if digest not in self._live and digest not in self._known:
                self._live[digest] = drawn
                return recipe
            if digest in self._known:
                self._report(drawn, self._known[digest])
            else:
                self._study.tell(drawn, state=TrialState.FAIL)
        for point in self._untried():
            if (recipe_ := self._enqueue(point)) is not None:
                return recipe_
        self._note = f"all {self._size} points of the study were tried"
        return WAIT if any(d not in self._known for d in self._live) else None

    def _warm_points(self) -> list[Point]:
        """Return points that sensitivities suggest: a growing share of the knobs that hurt most is left in float."""
        ask, count = self.problem.sensitivity, self.config.warm
        if ask is None or not count or self.config.sampler == "random":
            return []
        pairs = [(u.name, u.choices[0]) for k in self._knobs for u in k.units]
        losses = dict(zip((name for name, _ in pairs), ask("weight_error", pairs), strict=True))
        worst = sorted(self._knobs, key=lambda k: -sum(losses[u.name] for u in k.units))
        points = []
        for step in range(1, count + 1):
            point = dict.fromkeys(self._sizes, 0)
            for knob in worst[: math.ceil(len(worst) * step / (count + 1))]:
                point[knob.name] = knob.options.index(FLOAT)
            points.append(point)
        return points

    def _meet(self, point: Point) -> Recipe:
        recipe = self._recipe(point)
        self._met.add(_key(point))
        self._points.setdefault(recipe.digest, point)
        return recipe

    def _enqueue(self, point: Point) -> Recipe | None:
        """Put a point of our own into the study; None where it stands for a recipe that was met before."""
        recipe = self._meet(point)
        if recipe.digest in self._live or recipe.digest in self._known:
            return None
        self._study.enqueue_trial(dict(point))
        self._live[recipe.digest] = self._study.ask(self._space)
        return recipe

    def _untried(self) -> Iterator[Point]:
        """Yield points not met before, the nearest to the best one first."""
        start = self._best[1] if self._best else next(iter(self._points.values()), {})
        if self._size <= ENUMERABLE:
            rest = [
                dict(zip(self._sizes, p, strict=True))
                for p in itertools.product(*map(range, self._sizes.values()))
            ]
            rest = [p for p in rest if _key(p) not in self._met]
            yield from sorted(rest, key=lambda p: sum(p[n] != start[n] for n in p))
            return
        names = list(self._sizes)
        changes = 1
        while True:
            picked = self._rng.choice(len(names), size=min(changes, len(names)), replace=False)
            point = start | {
                names[i]: int(self._rng.integers(self._sizes[names[i]])) for i in picked
            }
            if _key(point) not in self._met:
                yield point
            changes += 1

    def _recipe(self, point: Point) -> Recipe:
        choice: dict[str, OpScheme] = {}
        for knob in self._knobs:
            wanted = knob.options[point[knob.name]]
            choice |= {u.name: wanted if wanted in u.choices else u.choices[0] for u in knob.units}
        transforms: tuple[PartChoice, ...] = self.problem.space.transforms[point.get(TRANSFORMS, 0)]
        return self.problem.space.recipe(choice, transforms)

    def tell(self, trial: Trial) -> None:
        """Tell the study; a failed trial is reported as failed."""
        digest = trial.recipe.digest
        if digest in self._known:
            return
        self._known[digest] = trial
        if digest not in self._live:
            return
        self._report(self._live[digest], trial)
        rank = (
            (0.0, *trial.costs(self.problem.objectives)) if trial.passed else (1.0, -trial.margin)
        )
        if self._best is None or rank < self._best[0]:
            self._best = (rank, self._points[digest])

    def _report(self, live: optuna.Trial, trial: Trial) -> None:
        if trial.state == "failed":
            self._study.tell(live, state=TrialState.FAIL)
            return
        margin = trial.margin if math.isfinite(trial.margin) else math.copysign(1e9, trial.margin)
        miss = -margin / (
            1.0 + abs(margin)
        )  # the same order, without the outliers that a surrogate model would chase
        values = [
            c if math.isfinite(c) else self._worst(i)
            for i, c in enumerate(trial.costs(self.problem.objectives))
        ] or [miss]
        live.set_constraint("goal", miss)
        self._study.tell(live, values)

    def _worst(self, index: int) -> float:
        """Return the largest cost seen, for recipes that missed the goal and were not measured."""
        seen = [t.costs(self.problem.objectives)[index] for t in self._known.values()]
        return max((c for c in seen if math.isfinite(c)), default=1.0)

    def explain(self) -> str:
        """Say how many points the study has and how many were tried."""
        return self._note or f"{len(self._known)} of {scale(self._size)} points of the study tried"


def _key(point: dict[str, int]) -> str:
    return ",".join(f"{n}={i}" for n, i in sorted(point.items()))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Optuna from announcing a study that lives in memory."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
