"""The tuning loop: one, for every backend and strategy, and for callers who own it.

ask -> evaluate (recorded when it returns, :mod:`.trying`) -> tell
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol

from octavo.core.contract.strategy import WAIT, Foresight, Wait
from octavo.core.errors import ConfigError, PluginError
from octavo.core.system.signals import OutOfTime, deadline
from octavo.core.values.recipe import Recipe
from octavo.core.values.trial import Trial

from .bench import Bench
from .failing_alike import failing_alike
from .progress import RECOVERY, TRIALS
from .recovery.after_search import AfterSearch
from .recovery.ladder import LadderPlan
from .telling.forecast import Running
from .trying import evaluate

REPEATS = 3
"""For each trial that there may be, a strategy may ask so often for what is known."""


class Asks(Protocol):
    """What the loop needs of a strategy (or of several, joined)."""

    def ask(self) -> Recipe | Wait | None:
        """Return the next recipe."""

    def tell(self, trial: Trial) -> None:
        """Take a finished trial."""

    def explain(self) -> str:
        """Say where the search stands."""

    def foresee(self) -> Foresight:
        """Say what may still be asked for."""


@dataclass(frozen=True)
class Limits:
    """When the loop ends, whatever the strategy says.

    Attributes:
        max_trials: Evaluations that there are, those of earlier runs on the same history included.
            What is recovered after the search comes on top of them.
        stop_at_goal: End at the first trial that passes.
    """

    max_trials: int
    stop_at_goal: bool = False


class Loop:
    """Asks a strategy for recipes and tells it their trials, until it, the goal or a limit ends it.

    Trials that the history holds already are told, never run again: so a run goes on after a crash
    where it was, and after a winner was refused, with a strategy that is made anew. They count,
    whether or not the strategy asks for them again.

    Where the search ends and none of its trials passes, recoveries of the closest are asked for
    (:mod:`.recovery.ladder`), as if they were a strategy's.

    Args:
        bench: What the run works with; the float model is scored.
        strategy: Makes a strategy anew.
        limits: When the loop ends.
        recovers: What is learned where no trial of the search passes.

    Attributes:
        reason: Why it ended; '' while it goes on.
    """

    def __init__(
        self, bench: Bench, strategy: Asks, limits: Limits, recovers: LadderPlan
    ) -> None:
        self._bench = bench
        self._limits = limits
        self._recovers = recovers
        self._shown: set[int] = set()
        self._phase: Running | None = None
        # Trials up to this number are of an earlier run.
        self._before = max((t.number for t in bench.trials), default=0)
        self.restart(strategy)

    def restart(self, strategy: Asks) -> None:
        """Go on with a strategy made anew, which learns all that the history holds by asking."""
        self.reason = ""
        self._strategy = strategy
        self._after = AfterSearch(self._bench, self._recovers)
        self._known = {t.recipe.digest: t for t in self._bench.trials}
        self._told: set[str] = set()
        self._pending: dict[str, Recipe] = {}
        self._repeats = 0
        self._bench.phases.foresee = self._foresee
        self._after.expect()

    def ask(self) -> Recipe | Wait | None:
        """Return the next recipe that no trial of the history is of.

        Returns:
            The recipe; WAIT where trials of recipes that were asked for must be told first; None at
            the end, and :attr:`reason` says why.
        """
        self.begin()
        found = self._next()
        if found is None:
            self.leave()
            self._after.is_over()
        return found

    def begin(self) -> None:
        """Tell that the trials begin, or go on."""
        if self._phase is not None:
            return
        phases, done = self._bench.phases, len(self._own_trials())
        if self._after.ladder is not None:
            most = self._after.ladder.most
            self._phase = phases.begin(RECOVERY, most, done=done)
            return
        self._phase = phases.begin(
            TRIALS,
            self._limits.max_trials,
            done=done,
            about=self._bench.space_told(),
            each=self._trial_seconds(),
        )

    def leave(self) -> None:
        """Tell that no trial is run for now: what follows is no part of the search."""
        if self._phase is not None:
            self._bench.phases.end(self._phase)
            self._phase = None

    def _next(self) -> Recipe | Wait | None:
        """Return what :meth:`ask` does, and answer what is known."""
        while not self.reason or self._after.may_come:
            if self.reason and self._pending:
                # What is under way may pass: whether recovery follows is known after it.
                self.reason = ""
                return WAIT
            if self.reason:
                self._recover()
            if self._has_all_it_may() and self._pending:
                return WAIT
            self.reason = self._why_end()
            found = None if self.reason else self._asked()
            if found is None:
                continue
            if isinstance(found, Wait) or found.digest in self._pending:
                return WAIT
            digest = found.digest
            if digest in self._known:
                self._answer(self._known[digest])
            elif self._used() >= self._most:
                self.reason = f"{self._limits.max_trials} trials were used up"
            else:
                self._pending[digest] = found
                return found
        return None

    def _recover(self) -> None:
        """Let recoveries be asked for from now on: the search ended, and no trial of it passes."""
        self.leave()
        self._strategy = self._after.begin(self.reason)
        self.reason = ""
        self.begin()

    def evaluate(self, recipe: Recipe) -> Trial:
        """Return the trial of what is carried out of a recipe: the history's, or one run now.

        Raises:
            ConfigError: If the recipe is of a backend that the run does not search.
            StoreError: If the history cannot be written.
        """
        if recipe.backend not in self._bench.backends:
            names = ", ".join(self._bench.backends)
            raise ConfigError(
                f"recipe of backend {recipe.backend!r}; this run has: {names}"
            )
        recipe = self._bench.backends[recipe.backend].settle(recipe)
        known = self._known.get(recipe.digest)
        if known is not None:
            return known
        self.begin()
        return evaluate(self._bench, recipe)

    def tell(self, trial: Trial) -> None:
        """Take a trial that :meth:`evaluate` returned.

        One of a recipe that the strategy did not ask for competes with the others, and is told to
        the strategy when it asks for it.

        Raises:
            ConfigError: If the history does not hold it.
        """
        if not any(t.number == trial.number for t in self._bench.trials):
            raise ConfigError(
                f"trial {trial.number} is not in this run's history: tell what evaluate() returned"
            )
        digest = trial.recipe.digest
        is_new = digest not in self._known
        self._known[digest] = trial
        if digest in self._pending:
            del self._pending[digest]
            self._tell_strategy(trial)
        if is_new:
            self._bench.notify(trial)
        self._conclude(trial)

    def _asked(self) -> Recipe | Wait | None:
        """Return what the strategy says; None with a reason where it ended or ran out of time."""
        try:
            with deadline(self._bench.clock.until(self._reserve())):
                found = self._strategy.ask()
        except OutOfTime:
            self.reason = (
                f"{self._bench.clock} while the strategy looked for the next recipe"
            )
            return None
        if found is None:
            said = self._strategy.explain() or "the strategy has nothing left to try"
            self.reason = self._after.told(said)
        if isinstance(found, Wait) and not self._pending:
            raise PluginError(
                "the strategy waits for a trial although none is pending; "
                "this is a fault of the strategy"
            )
        return found

    def _answer(self, known: Trial) -> None:
        """Tell the strategy a trial of the history that it asks for."""
        if known.recipe.digest not in self._told:
            self._tell_strategy(known)
            self._conclude(known)
            return
        # Asked twice. A strategy that only repeats itself has come to its end.
        self._repeats += 1
        searched = self._bench.history.as_searched(known)
        self._strategy.tell(replace(searched, reused=known.number))
        if self._repeats > REPEATS * self._limits.max_trials:
            self.reason = "the strategy only repeats recipes whose results are known"

    def _tell_strategy(self, trial: Trial) -> None:
        self._told.add(trial.recipe.digest)
        self._strategy.tell(self._bench.history.as_searched(trial))

    def _conclude(self, trial: Trial) -> None:
        """Show a trial, and see whether it ends the search."""
        best = self._bench.best()
        told = [t for t in self._bench.trials if t.recipe.digest in self._told]
        if ended := failing_alike(told):
            self.reason = self.reason or ended
            return
        self._show(trial)
        if self._limits.stop_at_goal and trial.passed and best is not None:
            reached = f"trial {trial.number} reached the goal"
            self.reason = self.reason or self._after.told(reached)

    def _show(self, trial: Trial) -> None:
        """Tell listeners of a trial, once: what is told is true of the trials told so far."""
        if trial.number in self._shown:
            return
        self._shown.add(trial.number)
        phases, left = self._bench.phases, None
        is_of_this_run = trial.number > self._before
        if self._phase is not None and is_of_this_run:
            phases.advance(self._phase, len(self._own_trials()))
            self._after.expect()
            left = phases.left()
        best = self._bench.best({0, *self._shown})
        for listener in self._bench.progress:
            listener.finished(trial, best, left)

    def _foresee(self) -> Foresight:
        """Return what may still be asked for and run, within the limits."""
        if self.reason or self._after.ladder is not None:
            return Foresight(0)
        ahead = self._strategy.foresee()
        spaces = (backend.searched for backend in self._bench.backends.values())
        size = sum(space.size for space in spaces if space.tunable)
        left = min(self._limits.max_trials, size) - len(self._own_trials())
        if ahead.trials is not None:
            left = min(left, ahead.trials + len(self._pending))
        return replace(ahead, trials=max(0, left))

    def _own_trials(self) -> list[Trial]:
        return [t for t in self._known.values() if self._after.is_own(t.recipe)]

    @property
    def _most(self) -> float:
        """Evaluations that there are in the part of the run that goes on."""
        return self._limits.max_trials if self._after.ladder is None else math.inf

    def _used(self) -> int:
        """Return how many of the trials that there may be are run or under way."""
        pending = [r for r in self._pending.values() if self._after.is_own(r)]
        return len(self._own_trials()) + len(pending)

    def _has_all_it_may(self) -> bool:
        """Return whether all trials are used, and the strategy knows every one that is finished."""
        if self._used() < self._most:
            return False
        return all(t.recipe.digest in self._told for t in self._own_trials())

    def _why_end(self) -> str:
        """Return why no recipe is asked for any more; '' where the search goes on.

        With a winner in hand, a trial is only begun if it is believed to end in time for the
        confirmation. Without one, until the limit: the last trial may then run past it.
        """
        clock = self._bench.clock
        if self._has_all_it_may():
            return f"{self._limits.max_trials} trials were used up"
        if clock.ran_out:
            return self._after.told(str(clock))
        if self._bench.best() is None:
            return self._after.why_search_ends()
        if clock.left < self._trial_seconds() + self._reserve():
            return f"{clock} but for the confirmation: another trial would end after it"
        return ""

    def _reserve(self) -> float:
        """Seconds that the run's end needs: without a winner there is nothing to confirm."""
        return self._bench.clock.reserve if self._bench.best() is not None else 0.0

    def _trial_seconds(self) -> float:
        """Return what a trial is believed to take.

        As long as the ones before, else as the float model's evaluation and timing.
        """
        own = (t for t in self._bench.trials if self._after.is_own(t.recipe))
        spent = [sum(t.seconds.values()) for t in own if t.seconds]
        if spent:
            return sum(spent) / len(spent)
        baseline = self._bench.baseline
        evaluating = baseline.seconds.get("evaluate", 0.0) / max(1, baseline.runs)
        return evaluating + baseline.seconds.get("measure", 0.0)


__all__ = ["Asks", "Limits", "Loop"]
