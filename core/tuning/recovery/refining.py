"""Refinement: the winner of a search learns once more, and keeps that where held-back samples say
that it is nearer to the float model.

Allocation decides how many bits each op has, an algorithm rounds to them, and what is left of the
loss is learned: EfficientQAT (Chen et al. 2024, section 3.3) trains the scales of the whole model
last, on codes that stay. No byte of the file is added.
"""

from __future__ import annotations

import logging
from functools import cached_property

from octavo.core.contract.recovery import (
    DISTILLATION,
    RECOVERIES,
    after_rounding,
    nothing_to_learn,
)
from octavo.core.contract.strategy import WAIT, Foresight, Wait
from octavo.core.numerics.affine import is_integer
from octavo.core.tuning.bench import Backend, Bench
from octavo.core.values.budgets import BITS
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import PartChoice
from octavo.core.values.trial import Trial

from .held_back import HeldBack
from .ladder import LadderPlan, closest

AUTOMATIC = after_rounding(PartChoice(kind=DISTILLATION))
"""What is learned where nobody says what: the scales, on codes that stay."""

WIDE = 8
"""Bits of a weight from which on rounding leaves nothing to be won back."""

MOST_WEIGHTS = 200_000_000
"""Weights up to which a model learns unasked: all its layers and a batch's activations are held at
once, in float32."""

TOO_FEW = "two batches of calibration data are needed: one is held back"

BYTES = (*BITS, "size")
"""Budgets of bytes: within one of them the loss is all that is left to be lowered."""


class Refiner:
    """Asks for the winner with what is learned after it, step by step.

    Each step begins at the best that the steps before made. The same history gives the same
    recipes, so a refinement that was cut off goes on.

    Args:
        bench: The run's; its history holds the trials of the search.
        plan: Whether, and by what.

    Attributes:
        target: The trial that is refined; None for none.
        steps: What is learned, in order; empty where nothing is.
        most: So many refinements there are at most.
        unsuited: What is not learned, and why.
        seen: So many trials there were when the target was chosen.
    """

    def __init__(self, bench: Bench, plan: LadderPlan) -> None:
        self._bench = bench
        self._plan = plan
        self._told: dict[str, Trial] = {}
        self._pending: set[str] = set()
        self.seen = len(bench.trials)
        self.target = _target(bench, plan)
        self.unsuited: tuple[str, ...] = ()
        self.steps = self._fitting(plan)
        self.most = len(self.steps)

    def ask(self) -> Recipe | Wait | None:
        """Return the next recipe to learn for; WAIT while a step is not told."""
        for place, _ in enumerate(self.steps):
            recipe = self._recipe(place)
            digest = recipe.digest
            if digest in self._pending:
                return WAIT
            if digest not in self._told:
                self._pending.add(digest)
                judge = self._held_back.judge(self._start(place))
                self._bench.refining[digest] = judge
                return recipe
        return None

    def tell(self, trial: Trial) -> None:
        """Take a finished refinement, and say what came of it."""
        self._pending.discard(trial.recipe.digest)
        self._told[trial.recipe.digest] = trial
        self._bench.tell(_outcome(trial), logging.INFO)
        if not trial.is_gain:
            self._own.realizer.recovering.forget(trial.recipe)

    def explain(self) -> str:
        """Say what came of it."""
        told = [_outcome(trial) for trial in self._told.values()]
        return "; ".join(told or self.unsuited)

    def foresee(self) -> Foresight:
        """Return how many refinements there may still be."""
        return Foresight(max(0, self.most - len(self._told) - len(self._pending)))

    def _fitting(self, plan: LadderPlan) -> tuple[PartChoice, ...]:
        """Return the steps that the target's backend can carry out for it."""
        target = self.target
        if target is None:
            return ()
        if plan.refine is None:
            return () if self._why_not_unasked(target) else (AUTOMATIC,)
        recovering = self._own.realizer.recovering
        found, unsuited = [], []
        for step in plan.refine:
            lacking = recovering.lacks(step.kind)
            why = lacking or nothing_to_learn(step.kind, target.recipe)
            if not why and not self._held_back:
                why = TOO_FEW
            if why:
                unsuited.append(
                    f"trial {target.number} is not refined by {step.kind}: {why}"
                )
            else:
                found.append(step)
        self.unsuited = tuple(unsuited)
        return tuple(found)

    def _why_not_unasked(self, target: Trial) -> str:
        """Return why a winner does not learn unasked; '' where it does."""
        recovering = self._own.realizer.recovering
        kind = AUTOMATIC.kind
        lacking = recovering.lacks(kind) or nothing_to_learn(kind, target.recipe)
        if lacking:
            return lacking
        if not any(name in BYTES for name in self._bench.budgets):
            return "no budget of bytes is set"
        weights = _narrow_weights(self._own, target.recipe)
        if not weights:
            return f"no weight has fewer than {WIDE} bits"
        if weights > MOST_WEIGHTS:
            return f"{weights:,} weights learn only where that is asked for"
        if not self._held_back:
            return TOO_FEW
        return "" if self._held_back.is_of_predictions else "nothing is predicted"

    @cached_property
    def _held_back(self) -> HeldBack:
        return HeldBack(self._own, self._plan.metric)

    @property
    def _own(self) -> Backend:
        assert self.target is not None
        return self._bench.backends[self.target.recipe.backend]

    def _recipe(self, place: int) -> Recipe:
        return self._start(place).recovered(self.steps[place])

    def _start(self, place: int) -> Recipe:
        """Return the best that the steps before one made of the target."""
        assert self.target is not None
        best = self.target.recipe
        for step in self.steps[:place]:
            learned = self._told.get(best.recovered(step).digest)
            if learned is not None and learned.is_gain:
                best = learned.recipe
        return best


def _target(bench: Bench, plan: LadderPlan) -> Trial | None:
    """Return the trial that is refined: the best of the search; where none passes and no other
    recovery is asked for, the closest that keeps the budgets."""
    searched = {t.number for t in bench.trials if not t.recipe.recovery}
    best = bench.best(searched)
    if best is not None or plan.steps:
        return best
    complete = [trial for trial in closest(bench) if trial.state == "complete"]
    return complete[0] if complete else None


def _narrow_weights(own: Backend, recipe: Recipe) -> int:
    """Return how many weights of a recipe have few enough bits that learning pays."""
    total = 0
    for unit in own.space.tunable:
        scheme = recipe[unit.ops[0]]
        weight = scheme.weight
        if scheme.mode != "weight_only" or weight is None:
            continue
        if is_integer(weight) and weight.bits < WIDE:
            total += unit.parameters
    return total


def _outcome(trial: Trial) -> str:
    """Say what came of a refinement."""
    (*_, step) = trial.recipe.recovery
    what = RECOVERIES[step.kind].what
    if trial.state == "failed":
        lines = trial.error.strip().splitlines()
        return f"refinement by {what} failed: {lines[-1] if lines else 'no error text'}"
    before, after = trial.distances["before"], trial.distances["after"]
    figures = (
        f"distance of outputs on held-back samples {after:.3g}, {before:.3g} without"
    )
    if trial.is_gain:
        return f"trial {trial.number}: refined by {what} ({figures})"
    return f"refinement by {what} is left out: it does not help ({figures})"


__all__ = ["AUTOMATIC", "Refiner"]
