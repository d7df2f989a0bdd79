"""A prepared run.

It is searched to its end, or by a caller who owns the loop, and then finished.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import wraps
from types import TracebackType
from typing import Concatenate, ParamSpec, TypeVar

from octavo.core.calibration.data import CalibrationData
from octavo.core.contract.strategy import Wait
from octavo.core.errors import ModelError, TrialTimeout, raised_as
from octavo.core.results.result import Result
from octavo.core.storage.differences import explain
from octavo.core.storage.history import History
from octavo.core.system.signals import OutOfTime, deadline
from octavo.core.values.budgets import float_keeps
from octavo.core.values.json_form import canonical_json
from octavo.core.values.recipe import Recipe
from octavo.core.values.trial import Trial

from .bench import Backend, Bench
from .direction import check_direction
from .ending.acceptance import Accepted
from .ending.finish import Finish
from .loop import Asks, Limits, Loop
from .progress import CALIBRATION, CONFIRMATION, SCORE_CHECK
from .recovery.ladder import LadderPlan

Given = ParamSpec("Given")
Given_back = TypeVar("Given_back")


def _heard(
    method: Callable[Concatenate[Run, Given], Given_back],
) -> Callable[Concatenate[Run, Given], Given_back]:
    """Let remarks from the depths come to the run while one of its methods goes on."""

    @wraps(method)
    def hearing(run: Run, /, *args: Given.args, **named: Given.kwargs) -> Given_back:
        with run._bench.remarks.heard():
            return method(run, *args, **named)

    return hearing


NOTHING = (
    "nothing to quantize: no op of this model has a scheme to choose (see the ledger and "
    "the rules)"
)
ENDED_EARLY = "the search was ended by its caller"


@dataclass(frozen=True)
class Plan:
    """How a run is searched.

    Attributes:
        strategy: Makes the strategy anew.
        limits: When the loop ends.
        seed: Of the shuffles of the broken model.
        guarded: The backend whose model is broken on purpose, to see that the score notices.
        recovers: What is learned where no trial passes.
    """

    strategy: Callable[[], Asks]
    limits: Limits
    seed: int
    guarded: str
    recovers: LadderPlan


class Run:
    """A run whose model is opened and whose float model is scored; made by ``octavo.prepare``.

    ``search()`` runs the loop to its end. A caller who owns the loop does the same by hand::

        with octavo.prepare(model, score, batches, tolerance=0.01) as run:
            while isinstance(recipe := run.ask(), octavo.Recipe):
                run.tell(run.evaluate(recipe))
            result = run.finish()

    Both may be mixed, and ``finish()`` may come at any time. A run holds files, locks and perhaps a
    child process until it is closed. It is for one thread.

    Args:
        bench: What the run works with.
        plan: How it is searched.
        finish: Makes the result.
        resources: Closed with the run.
    """

    def __init__(
        self, bench: Bench, plan: Plan, finish: Finish, resources: ExitStack
    ) -> None:
        self._bench = bench
        self._plan = plan
        self._finish = finish
        self._resources = resources
        self._loop: Loop | None = None
        self._accepted: Accepted | None = None
        self._is_calibrated = False
        self._is_settled = not any(b.searched.tunable for b in bench.backends.values())
        self._interruption = ""
        self._out_of_time = ""
        self._result: Result | None = None

    def search(self) -> None:
        """Ask, evaluate and tell until the strategy, the goal, a limit or a signal ends it.

        Ctrl-C, SIGTERM and SIGHUP end the search and not the run: the best so far is kept.

        Raises:
            OctavoError: If the model cannot be calibrated, the score points the wrong way, or the
                history cannot be written. What a trial raises is recorded, and the search goes on.
        """
        self._interruption = ""
        try:
            while isinstance(recipe := self.ask(), Recipe):
                self.tell(self.evaluate(recipe))
        except KeyboardInterrupt:
            self._interruption = (
                "interrupted; the best so far is kept"
                if self._is_calibrated
                else "interrupted before calibration was done"
            )

    @_heard
    def ask(self) -> Recipe | Wait | None:
        """Return the next recipe to evaluate; the first call calibrates.

        Returns:
            A recipe that the history does not know; ``WAIT`` where trials of recipes that were
            asked for must be told first; None at the end of the search, when the winner was saved,
            loaded and scored again, and stands.
        """
        if self._is_settled:
            return None
        loop = self._begun()
        while loop is not None:
            found = loop.ask()
            if found is not None:
                return found
            has_winner = self._bench.best() is not None
            self._accept()
            if self._accepted is not None or not has_winner:
                break
            # A refused winner is told to a strategy made anew, with all the rest: the search goes
            # on where it was, but for that.
            loop.restart(self._plan.strategy())
        self._is_settled = True
        return None

    @_heard
    def evaluate(self, recipe: Recipe) -> Trial:
        """Quantize, score, measure and judge; the trial is in the history when this returns.

        What goes wrong in it is the trial's ``error``. The history's trial is returned where it
        holds one of this recipe. Recipes that were not asked for may be evaluated too: they
        compete with the others.

        Raises:
            ConfigError: If the run has no such backend.
            StoreError: If the history cannot be written.
            TrialTimeout: If time ran out before the model was calibrated.
        """
        return self._ready().evaluate(recipe)

    @_heard
    def tell(self, trial: Trial) -> None:
        """Tell the strategy a trial that :meth:`evaluate` returned.

        Raises:
            ConfigError: If the history does not hold it.
        """
        self._ready().tell(trial)
        # It may be better than the winner that stood before it.
        self._is_settled = False

    @_heard
    def finish(self) -> Result:
        """Return the result: of the whole search, or of what was searched so far.

        The best trial so far is saved, loaded and scored again first, as at the search's end.
        """
        if self._result is None:
            self._result = self._concluded()
            self._is_settled = True
        return self._result

    def close(self) -> None:
        """Release the executor, the history and its lock, and temporary files."""
        self._resources.close()

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._resources.__exit__(kind, error, traceback)

    def _begun(self) -> Loop | None:
        """Return the loop, which begins with calibration; None where time ran out before it."""
        if self._loop is None and not self._out_of_time:
            try:
                self._calibrate()
            except OutOfTime:
                self._out_of_time = f"{self._bench.clock} before calibration was done"
                return None
            self._loop = self._started()
        return self._loop

    def _ready(self) -> Loop:
        loop = self._begun()
        if loop is None:
            raise TrialTimeout(self._out_of_time)
        return loop

    def _calibrate(self) -> None:
        """Run the calibration data through the model of every backend that has a choice."""
        backends, phases = self._bench.backends, self._bench.phases
        chosen = {n: b for n, b in backends.items() if b.space.tunable}
        phase = phases.begin(CALIBRATION, _batches_in_all(chosen.values()))
        try:
            for name, backend in chosen.items():
                fault = f"{name} cannot run this model on the calibration data"
                with deadline(self._bench.clock.until()), raised_as(ModelError, fault):
                    backend.realizer.calibrate(phases.each(phase, backend.data))
        finally:
            phases.end(phase)
        self._is_calibrated = True
        _check_batches(self._bench.history, {n: b.data for n, b in backends.items()})
        guarded = backends[self._plan.guarded].realizer
        with phases.within(SCORE_CHECK):
            check_direction(self._bench, guarded, self._plan.seed)

    def _started(self) -> Loop:
        """Return the loop, and tell listeners that it begins."""
        bench, limits = self._bench, self._plan.limits
        loop = Loop(bench, self._plan.strategy(), limits, self._plan.recovers)
        size = sum(backend.space.size for backend in bench.backends.values())
        loop.begin()
        for listener in bench.progress:
            listener.started(bench.baseline, self._finish.goal, limits.max_trials, size)
        return loop

    def _accept(self) -> None:
        """Examine the winners; None stands where none is accepted."""
        with self._bench.phases.within(CONFIRMATION):
            self._accepted = self._finish.acceptance.accept()

    def _concluded(self) -> Result:
        if self._loop is not None:
            self._loop.leave()
        backends = self._bench.backends.values()
        if not any(b.space.tunable for b in backends):
            self._bench.tell(NOTHING)
            return self._finish.float_model(NOTHING)
        if self._loop is None and not any(b.searched.tunable for b in backends):
            reason = f"the float model is kept: {'; '.join(self._finish.left_out)}"
            goal_met = float_keeps(self._bench.budgets)
            return self._finish.float_model(reason, goal_met=goal_met)
        if self._interruption:
            return self._interrupted()
        if self._loop is None:
            reason = self._bench.clock.told(self._out_of_time or ENDED_EARLY)
            self._tell_end(reason)
            return self._finish.unready(reason)
        if not self._is_settled:
            self._accept()
        reason = self._bench.clock.told(self._loop.reason or ENDED_EARLY)
        self._tell_end(reason)
        if self._accepted is None:
            return self._finish.unhelped(reason)
        return self._finish.reached(self._accepted, reason)

    def _interrupted(self) -> Result:
        reason = self._interruption
        self._tell_end(reason)
        if self._is_calibrated:
            return self._finish.interrupted(reason)
        return self._finish.unready(reason, interrupted=True)

    def _tell_end(self, reason: str) -> None:
        for listener in self._bench.progress:
            listener.ended(reason)


def _batches_in_all(backends: Iterable[Backend]) -> int | None:
    """Return how many batches calibration reads; None where a factory makes them."""
    kept = [backend.data.batches for backend in backends]
    known = [len(batches) for batches in kept if batches is not None]
    return sum(known) if len(known) == len(kept) else None


def _check_batches(history: History, data: Mapping[str, CalibrationData]) -> None:
    """Compare what calibration read of factories, all of it, with what the history's run read.

    Raises:
        StoreError: If later batches are others than they were.
    """
    read = {name: batches.read for name, batches in data.items() if batches.read}
    before = history.keep("batches", read) if read else {}
    then, now = canonical_json(before), canonical_json({**before, **read})
    if why := explain({"batches": then}, {"batches": now}, {}, {}):
        raise history.refuse_resume(why)


__all__ = ["Plan", "Run"]
