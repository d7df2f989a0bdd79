"""Bayesian optimisation and its relatives: an Optuna study in memory, asked and told."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import TrialState

from octavo.core.contract.parts import PartConfig
from octavo.core.contract.strategy import WAIT, Foresight, Problem, Strategy, Wait
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import FLOAT, OpScheme
from octavo.core.values.space import Unit
from octavo.core.values.trial import Trial

from . import BayesianConfig
from .exhaustive import scale
from .studies import sampler_of, study_in_memory

Point = dict[str, int]
"""A choice for each knob of the study, by the knob's name."""

TRANSFORMS = "transforms"  # the knob that takes a model-wide alternative

REDRAWS = 20  # the sampler may repeat itself so often before a neighbour is taken in its place

ENUMERABLE = 4096  # up to this many points the untried ones are listed

ENDLESS = (
    1e9  # a margin that stands for an infinite one: a study takes finite values only
)


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
    """Samples whole recipes, under the accuracy goal as the study's constraint.

    The objectives are the study's values; with none the margin itself is maximised. A recipe is
    never returned twice: a repeated draw is told its known result and drawn again, and after a
    number of repeats an untried neighbour of the best recipe is taken.

    Raises:
        MissingFramework: If the ``gp`` sampler is asked for and torch is not installed.
    """

    config: BayesianConfig

    def __init__(self, config: PartConfig, problem: Problem) -> None:
        super().__init__(config, problem)
        space = problem.space
        self._knobs = _knobs(space.tunable, self.config.over)
        self._sizes = {knob.name: len(knob.options) for knob in self._knobs}
        if len(space.transforms) > 1:
            self._sizes[TRANSFORMS] = len(space.transforms)
        self._size = math.prod(self._sizes.values())
        self._space = _distributions(self._sizes)
        self._rng = np.random.default_rng(problem.seed)
        sampler = sampler_of(self.config, problem.seed)
        self._study = study_in_memory(len(problem.objectives), sampler)
        self._live: dict[str, optuna.Trial] = {}
        self._points: dict[str, Point] = {}
        self._met: set[str] = set()
        self._known: dict[str, Trial] = {}
        self._best: tuple[tuple[float, ...], Point] | None = None
        self._warm: list[Point] | None = None
        self._note = ""

    def ask(self) -> Recipe | Wait | None:
        """Return the sampler's next recipe that was not returned before.

        None once every point of the study is known.
        """
        if self.problem.stop_at_goal and self._has_reached_the_goal():
            self._note = "stopped at the first recipe that reaches the goal"
            return None
        # An all-float recipe is empty, and so false.
        found = self._start()
        if found is None:
            found = self._drawn()
        if found is not None:
            return found
        for point in self._untried():
            recipe = self._enqueue(point)
            if recipe is not None:
                return recipe
        self._note = f"all {self._size} points of the study were tried"
        is_waiting = any(digest not in self._known for digest in self._live)
        return WAIT if is_waiting else None

    def _has_reached_the_goal(self) -> bool:
        return any(t.passed and len(t.recipe) for t in self._known.values())

    def _start(self) -> Recipe | None:
        """Return the next starting point: the first choices, then what sensitivities suggest."""
        if not self._met and self._sizes:
            recipe = self._enqueue(dict.fromkeys(self._sizes, 0))
            if recipe is not None:
                return recipe
        if self._warm is None:
            self._warm = self._warm_points()
        while self._warm:
            recipe = self._enqueue(self._warm.pop(0))
            if recipe is not None:
                return recipe
        return None

    def _drawn(self) -> Recipe | None:
        """Return what the sampler draws; None where it only repeats itself."""
        for _ in range(REDRAWS):
            if len(self._met) >= self._size:
                return None
            drawn = self._study.ask(self._space)
            point = {name: int(drawn.params[name]) for name in self._sizes}
            recipe = self._meet(point)
            digest = recipe.digest
            if digest in self._known:
                self._report(drawn, self._known[digest])
            elif digest in self._live:
                self._study.tell(drawn, state=TrialState.FAIL)
            else:
                self._live[digest] = drawn
                return recipe
        return None

    def _warm_points(self) -> list[Point]:
        """Return points that sensitivities suggest.

        A growing share of the knobs that hurt most is left in float.
        """
        service = self.problem.sensitivity
        count = self.config.warm
        if service is None or not self._is_warmed():
            return []
        units = [unit for knob in self._knobs for unit in knob.units]
        asked = [(unit.name, unit.choices[0]) for unit in units]
        found = service("weight_error", asked)
        losses = {unit.name: loss for unit, loss in zip(units, found, strict=True)}

        def from_worst(knob: Knob) -> float:
            return -sum(losses[unit.name] for unit in knob.units)

        worst = sorted(self._knobs, key=from_worst)
        points = []
        for step in range(1, count + 1):
            kept = math.ceil(len(worst) * step / (count + 1))
            point = dict.fromkeys(self._sizes, 0)
            for knob in worst[:kept]:
                point[knob.name] = knob.options.index(FLOAT)
            points.append(point)
        return points

    def _is_warmed(self) -> bool:
        """Return whether sensitivities give starting points."""
        can_ask = self.problem.sensitivity is not None
        return can_ask and self.config.warm > 0 and self.config.sampler != "random"

    def _meet(self, point: Point) -> Recipe:
        """Return the recipe of a point, which is remembered."""
        recipe = self._recipe(point)
        self._met.add(_key(point))
        self._points.setdefault(recipe.digest, point)
        return recipe

    def _enqueue(self, point: Point) -> Recipe | None:
        """Put a point of our own into the study.

        None where it stands for a recipe that was met before.
        """
        recipe = self._meet(point)
        if recipe.digest in self._live or recipe.digest in self._known:
            return None
        self._study.enqueue_trial(dict(point))
        self._live[recipe.digest] = self._study.ask(self._space)
        return recipe

    def _untried(self) -> Iterator[Point]:
        """Yield points not met before, the nearest to the best one first."""
        if self._best is not None:
            _, start = self._best
        else:
            start = next(iter(self._points.values()), {})
        if self._size > ENUMERABLE:
            yield from self._wandering(start)
            return

        rest = []
        for picks in itertools.product(*map(range, self._sizes.values())):
            point = dict(zip(self._sizes, picks, strict=True))
            if _key(point) not in self._met:
                rest.append(point)

        def distance(point: Point) -> int:
            return sum(point[name] != start[name] for name in point)

        yield from sorted(rest, key=distance)

    def _wandering(self, start: Point) -> Iterator[Point]:
        """Yield points not met before that differ from one in ever more random knobs, for ever."""
        names = list(self._sizes)
        for changes in itertools.count(1):
            count = min(changes, len(names))
            picked = self._rng.choice(len(names), size=count, replace=False)
            point = dict(start)
            for index in picked:
                name = names[index]
                point[name] = int(self._rng.integers(self._sizes[name]))
            if _key(point) not in self._met:
                yield point

    def _recipe(self, point: Point) -> Recipe:
        choice: dict[str, OpScheme] = {}
        for knob in self._knobs:
            wanted = knob.options[point[knob.name]]
            for unit in knob.units:
                is_offered = wanted in unit.choices
                choice[unit.name] = wanted if is_offered else unit.choices[0]
        transforms = self.problem.space.transforms[point.get(TRANSFORMS, 0)]
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
        rank: tuple[float, ...] = (1.0, -trial.margin)
        if trial.passed:
            rank = (0.0, *trial.costs(self.problem.objectives))
        if self._best is None or rank < self._best[0]:
            self._best = (rank, self._points[digest])

    def _report(self, live: optuna.Trial, trial: Trial) -> None:
        if trial.state == "failed":
            self._study.tell(live, state=TrialState.FAIL)
            return
        margin = trial.margin
        if not math.isfinite(margin):
            margin = math.copysign(ENDLESS, margin)
        # The same order, without the outliers that a surrogate model would chase.
        miss = -margin / (1.0 + abs(margin))
        live.set_constraint("goal", miss)
        self._study.tell(live, self._values(trial) or [miss])

    def _values(self, trial: Trial) -> list[float]:
        """Return a trial's costs, all finite."""
        values = []
        for index, cost in enumerate(trial.costs(self.problem.objectives)):
            is_finite = math.isfinite(cost)
            values.append(cost if is_finite else self._worst(index))
        return values

    def _worst(self, index: int) -> float:
        """Return the largest cost seen, for recipes that missed the goal and were not measured."""
        objectives = self.problem.objectives
        seen = [trial.costs(objectives)[index] for trial in self._known.values()]
        return max(filter(math.isfinite, seen), default=1.0)

    def foresee(self) -> Foresight:
        """Return what is left of the study; sensitivities are asked for once, near its start."""
        untried = max(0, self._size - len(self._met))
        return Foresight(untried, probes=self._warm is None and self._is_warmed())

    def explain(self) -> str:
        """Say how many points the study has and how many were tried."""
        if self._note:
            return self._note
        return f"{len(self._known)} of {scale(self._size)} points of the study tried"


def _knobs(units: Sequence[Unit], over: str) -> list[Knob]:
    """Return the decisions over op types, over those of each block, or over ops."""
    groups: dict[str, list[Unit]] = {}
    for unit in units:
        names = {
            "type": unit.type,
            "block": f"{unit.block or unit.name}:{unit.type}",
            "op": unit.name,
        }
        groups.setdefault(names[over], []).append(unit)
    found = []
    for name, members in groups.items():
        options = dict.fromkeys(s for u in members for s in u.choices)
        found.append(Knob(name, tuple(members), tuple(options)))
    return found


def _distributions(sizes: Mapping[str, int]) -> dict[str, BaseDistribution]:
    """Return each knob's choices as the study knows them."""
    return {name: CategoricalDistribution(range(n)) for name, n in sizes.items()}


def _key(point: Point) -> str:
    return ",".join(f"{n}={i}" for n, i in sorted(point.items()))
