"""The ladder: the closest candidates of a search that missed its goal are repaired, step by step.

EfficientQAT (Chen et al. 2024) shows the order that pays: first what a block puts out, then the
whole model's predictions, and training, which costs most, last. Each step is tried on the few
candidates that came closest before the next, dearer step begins.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from octavo.core.contract.recovery import QAT, nothing_to_learn
from octavo.core.contract.strategy import WAIT, Foresight, Wait
from octavo.core.opening.config import TuningConfig
from octavo.core.quantizing.recovering import Recovering
from octavo.core.tuning.bench import Bench
from octavo.core.values.budgets import BITS, overruns
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import PartChoice
from octavo.core.values.trial import Trial


@dataclass(frozen=True)
class LadderPlan:
    """What is learned where no trial of the search passes.

    Attributes:
        steps: In order.
        top: How many candidates each step is tried on.
        refine: What the winner of a search learns, in order; None for what is learned unasked.
        metric: How outputs are compared to judge a winner that has learned.
    """

    steps: tuple[PartChoice, ...] = ()
    top: int = 2
    refine: tuple[PartChoice, ...] | None = ()
    metric: str = "auto"

    @classmethod
    def of(cls, settings: TuningConfig) -> LadderPlan:
        """Return what settings ask for."""
        refine: tuple[PartChoice, ...] | None = ()
        if settings.refine != "auto":
            refine = settings.refine
        elif settings.stop != "goal":
            # Who stops at the first recipe that passes wants no better one.
            refine = None
        metric = settings.output_metric
        return cls(settings.recover, settings.recover_top, refine, metric)

    def __bool__(self) -> bool:
        return bool(self.steps)


class Ladder:
    """Asks for recoveries as a strategy asks for recipes; it is made when the search has ended.

    Each step is tried on the candidates that came closest, of those that it can learn for.
    A step begins where the step before, on the same candidate, came closer to the goal than the
    candidate itself; else at the candidate. ``qat`` always begins at the candidate, for training
    starts from the float weights. Once a recovery passes, the others of its step are still tried,
    for one may be smaller or faster, and no further step is.

    The same history gives the same recipes, so a ladder made anew goes on where one was cut off.

    Args:
        bench: The run's; its history holds the trials of the search.
        plan: What is tried.

    Attributes:
        candidates: The trials that may be repaired, the closest to the goal first.
        most: So many recoveries there are at most.
        unsuited: What is not tried, and why.
    """

    def __init__(self, bench: Bench, plan: LadderPlan) -> None:
        self._bench = bench
        self._plan = plan
        self._told: dict[str, Trial] = {}
        self._pending: set[str] = set()
        self.candidates = closest(bench)
        self._carried = [self._carrying(step) for step in plan.steps]
        self.most = sum(map(len, self._carried))
        self.unsuited = tuple(self._why_not())

    def ask(self) -> Recipe | Wait | None:
        """Return the next recipe to learn for; WAIT while a step is not told to its end."""
        for place, step in enumerate(self._plan.steps):
            recipes = list(self._recipes(place, step))
            for recipe in recipes:
                if recipe.digest not in {*self._told, *self._pending}:
                    self._pending.add(recipe.digest)
                    return recipe
            if any(recipe.digest in self._pending for recipe in recipes):
                return WAIT
            if any(self._told[recipe.digest].passed for recipe in recipes):
                return None
        return None

    def tell(self, trial: Trial) -> None:
        """Take a finished recovery."""
        self._pending.discard(trial.recipe.digest)
        self._told[trial.recipe.digest] = trial
        self._tidy()

    def explain(self) -> str:
        """Say what came of it."""
        passed = [t for t in self._told.values() if t.passed]
        if passed:
            numbers = ", ".join(str(t.number) for t in passed)
            return f"reached the goal by recovery: {_trials(len(passed))} {numbers}"
        if not self.candidates:
            return "no candidate to recover: none was completed that keeps the budgets"
        if not self._told:
            return "no recovery could be tried (see the remarks)"
        return f"{_recoveries(len(self._told))} did not reach the goal"

    def foresee(self) -> Foresight:
        """Return how many recoveries there may still be."""
        return Foresight(max(0, self.most - len(self._told) - len(self._pending)))

    def _tidy(self) -> None:
        """Let go of the models that nothing needs: neither the result nor a further step."""
        steps = len(self._plan.steps)
        repaired = [trial for carried in self._carried for trial in carried]
        needed = {self._best_start(own, steps).digest for own in repaired}
        nearest = max(self._told.values(), key=lambda t: (t.margin, -t.number))
        needed.add(nearest.recipe.digest)
        for digest, trial in self._told.items():
            if not trial.passed and digest not in needed:
                self._recovering(trial).forget(trial.recipe)

    def _recipes(self, place: int, step: PartChoice) -> Iterator[Recipe]:
        """Yield what a step is tried on, the closest candidate first."""
        for trial in self._carried[place]:
            is_trained = step.kind == QAT
            start = trial.recipe if is_trained else self._best_start(trial, place)
            yield start.recovered(step)

    def _carrying(self, step: PartChoice) -> Sequence[Trial]:
        """Return the closest candidates that a step can learn for."""
        fit = [t for t in self.candidates if not self._unfit(t, step)]
        return fit[: self._plan.top]

    def _unfit(self, candidate: Trial, step: PartChoice) -> str:
        """Return why a step cannot learn for a candidate; '' where it may."""
        lacking = self._recovering(candidate).lacks(step.kind)
        return lacking or nothing_to_learn(step.kind, candidate.recipe)

    def _recovering(self, trial: Trial) -> Recovering:
        return self._bench.backends[trial.recipe.backend].realizer.recovering

    def _why_not(self) -> Iterator[str]:
        """Say of each step where it is not carried out, and where it has nothing to learn."""
        backends = dict.fromkeys(trial.recipe.backend for trial in self.candidates)
        for step, carried in zip(self._plan.steps, self._carried, strict=True):
            for name in backends:
                recovering = self._bench.backends[name].realizer.recovering
                if why := recovering.lacks(step.kind):
                    yield f"no recovery by {step.kind}: {why}"
            if self.candidates and not carried:
                nearest = self.candidates[0]
                why = nothing_to_learn(step.kind, nearest.recipe)
                if why:
                    yield f"no recovery by {step.kind} for trial {nearest.number}: {why}"

    def _best_start(self, candidate: Trial, place: int) -> Recipe:
        """Return the best that the steps before one made of a candidate, or the candidate."""
        best = candidate
        for step in self._plan.steps[:place]:
            if step.kind == QAT:
                continue
            learned = self._told.get(best.recipe.recovered(step).digest)
            if learned is None or learned.state == "failed":
                continue
            if learned.margin > best.margin:
                best = learned
        return best.recipe


def closest(bench: Bench) -> tuple[Trial, ...]:
    """Return the trials of the search that came closest to the goal, the closest first.

    Those that overran a budget are none: what is learned changes no size. One whose evaluation was
    stopped early was not measured: it comes after those that are known to keep the budgets.

    Args:
        bench: The run's.
    """
    searched = [
        trial
        for trial in bench.trials
        if not trial.recipe.recovery and len(trial.recipe) and trial.state != "failed"
    ]
    kept = [trial for trial in searched if not _overruns(bench, trial)]
    is_measured = not any(name not in BITS for name in bench.budgets)

    def nearness(trial: Trial) -> tuple[bool, float, int]:
        is_known = is_measured or trial.state == "complete"
        return is_known, trial.margin, -trial.number

    unlike = {trial.recipe.digest: trial for trial in kept}
    return tuple(sorted(unlike.values(), key=nearness, reverse=True))


def _overruns(bench: Bench, trial: Trial) -> bool:
    """Return whether a trial is known to overrun a budget."""
    if trial.over:
        return True
    # Bits are counted, not measured: they are known of a trial that was stopped, too.
    counted = {n: limit for n, limit in bench.budgets.items() if n in BITS}
    space = bench.backends[trial.recipe.backend].space
    applied = {op: line.applied for op, line in trial.ledger.items()}
    return bool(overruns(counted, space, applied, {}))


def _recoveries(count: int) -> str:
    return "one recovery" if count == 1 else f"{count} recoveries"


def _trials(count: int) -> str:
    return "trial" if count == 1 else "trials"


__all__ = ["Ladder", "LadderPlan", "closest"]
