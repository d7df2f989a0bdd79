"""The end of a run: choose the winner, save it, load it and score it again, and hand it back with the evidence."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .adapter import Candidate, Opened
from .budgets import explain
from .choice import choose
from .config import TuningConfig
from .loop import Loop, tell
from .plugins import PluginHost
from .result import MODEL, Result, load_candidate, save_candidate
from .rules import fixed_ops
from .trial import Trial


@dataclass(frozen=True)
class Finish:
    """Makes results of what the loop found.

    Attributes:
        loop: With its history.
        settings: The run's.
        goal: In one line.
        native: What score functions were given.
        opened: The run's backends, the model's own first.
        began: ``time.perf_counter()`` at the run's start.
        model: The float model, which some backends need to load what they saved.
        host: Plugins.
    """

    loop: Loop
    settings: TuningConfig
    goal: str
    native: bool
    opened: tuple[Opened, ...]
    began: float
    model: Any
    host: PluginHost

    def choose(self, reason: str, *, interrupted: bool) -> Result:
        """Return the best passing trial that also passes once it was saved and loaded; else the closest, and by how much."""
        loop = self.loop
        trials = [t for t in loop.history.trials if t.number > 0]
        refused: set[int] = set()
        while True:
            winner = choose([t for t in trials if t.number not in refused], tuple(loop.objectives))
            if winner is None:
                break
            candidate = self._candidate(winner)
            if not self.settings.confirm or interrupted:
                return self.result(candidate, winner, goal_met=True, reason=reason, interrupted=interrupted)
            confirmed, problem = self._confirm(candidate)
            if not problem:
                return self.result(candidate, winner, goal_met=True, reason=reason, confirmed=confirmed)
            refused.add(winner.number)
            tell(
                loop.progress, f"trial {winner.number} passed, but not after saving and loading it again: {problem}; the next best is taken"
            )
        done = [t for t in trials if t.state != "failed" and t.number not in refused]
        if not done:
            return self._nothing(trials, reason, interrupted)
        # A budget is hard: what keeps it comes before what is more accurate.
        closest = max(done, key=lambda t: (not t.over, t.margin, -t.number))
        assert loop.baseline is not None
        verdict = loop.criterion.judge(closest.metrics, loop.baseline.metrics)
        miss = "; ".join(filter(None, ("" if verdict.passed else verdict.reason, explain(closest.over, loop.budgets))))
        return self.result(
            self._candidate(closest), closest, reason=f"no trial reached the goal; the closest: {miss} ({reason})", interrupted=interrupted
        )

    def _nothing(self, trials: list[Trial], reason: str, interrupted: bool) -> Result:
        failed = next((t for t in reversed(trials) if t.error), None)
        why = f"no trial was completed; the last error: {failed.error.splitlines()[-1]}" if failed else "no trial was completed"
        assert self.loop.baseline is not None
        return self.result(self.loop.reference.candidate, self.loop.baseline, reason=f"{why} ({reason})", interrupted=interrupted)

    def _candidate(self, trial: Trial) -> Candidate:
        return self.loop.backends[trial.recipe.backend].realizer.candidate(trial.recipe)

    def _confirm(self, candidate: Candidate) -> tuple[Mapping[str, float], str]:
        """Return the scores after a round trip through the disk, and why they do not do ('' if they do)."""
        assert self.loop.baseline is not None
        own = candidate.recipe.backend == self.opened[0].name
        with tempfile.TemporaryDirectory(prefix="octavo-") as folder:
            try:
                saved = save_candidate(candidate, Path(folder) / "result", {})
                loaded = load_candidate(saved, self.model if own else None, host=self.host)
                scores = self.loop.scoring.full(loaded)
                size = sum(p.stat().st_size for p in (saved / MODEL).rglob("*") if p.is_file())
            except Exception as error:
                return {}, f"{type(error).__name__}: {error}"
        verdict = self.loop.criterion.judge(scores.metrics, self.loop.baseline.metrics)
        limit = self.loop.budgets.get("size", float("inf"))
        if size > limit * self.loop.reference.bytes * (1 + 1e-9):
            return scores.metrics, f"its files hold {size / self.loop.reference.bytes:.4g} of the float model's, and {limit:g} is allowed"
        return scores.metrics, "" if verdict.passed else verdict.reason

    def result(
        self,
        candidate: Candidate,
        best: Trial,
        *,
        reason: str,
        goal_met: bool = False,
        confirmed: Mapping[str, float] | None = None,
        interrupted: bool = False,
    ) -> Result:
        """Gather the evidence."""
        loop = self.loop
        assert loop.baseline is not None
        return Result(
            candidate,
            self.native,
            tuple(n for o in self.opened for n in (*o.notes, *(loop.backends[o.name].space if o.name in loop.backends else o.view).notes)),
            goal_met=goal_met,
            reason=reason,
            best=best,
            baseline=loop.baseline,
            trials=tuple(t for t in loop.history.trials if t.number > 0),
            config=self.settings,
            goal=self.goal,
            confirmed=confirmed,
            holdout=None
            if interrupted or not best.number
            else loop.scoring.on_holdout(loop.reference.candidate, candidate, loop.criterion),
            views={o.name: o.view for o in self.opened},
            fixed={o.name: fixed_ops(o, loop.backends[o.name].space) for o in self.opened if o.name in loop.backends},
            storage=loop.history.location,
            interrupted=interrupted,
            seconds=time.perf_counter() - self.began,
        )
