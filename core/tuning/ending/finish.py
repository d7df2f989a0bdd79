"""The end of a run: what was found is handed back as a result, with the evidence and the reason."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from octavo.core.contract.adapter import Candidate
from octavo.core.opening.config import TuningConfig
from octavo.core.opening.spaces import fixed_ops
from octavo.core.opening.speeds import known_slower
from octavo.core.results.circumstances import (
    data_record,
    holdout_record,
    machine_record,
)
from octavo.core.results.result import Result
from octavo.core.scoring.certificate import Certificate
from octavo.core.scoring.certifying import coarseness
from octavo.core.scoring.choice import compared
from octavo.core.scoring.scoring import Holdout
from octavo.core.scoring.why_best import why_best
from octavo.core.scoring.yardstick import Judged
from octavo.core.tuning.bench import Backend, Bench, without_refined
from octavo.core.values.budgets import explain
from octavo.core.values.trial import Trial, widths

from .acceptance import Acceptance, Accepted
from .figures import figures_by_layer
from .whole_front import whole_front


@dataclass(frozen=True)
class _Evidence:
    """What a result holds beside its model and its reason.

    Attributes:
        confirmed: The winner's metrics after it was saved, loaded and scored again.
        holdout: Its scores on held-out data.
        certificate: How sure it is on new data.
    """

    confirmed: Mapping[str, float] | None = None
    holdout: Holdout | None = None
    certificate: Certificate | None = None


_NONE = _Evidence()


@dataclass(frozen=True)
class Finish:
    """Makes results of what the loop found.

    Attributes:
        bench: What the run works with, its history above all.
        acceptance: Examined the winners.
        settings: The run's.
        goal: In one line.
        native: What score functions were given.
        left_out: What the search did not try, and why.
        source: What the calibration data was given as.
        share: Of the samples, what is held out of the search.
    """

    bench: Bench
    acceptance: Acceptance
    settings: TuningConfig
    goal: str
    native: bool
    left_out: tuple[str, ...] = ()
    source: str = ""
    share: float = 0.0

    def reached(self, accepted: Accepted, reason: str) -> Result:
        """Return the result of a run whose goal was reached."""
        certificate = accepted.certificate
        said = [reason, self._noise(accepted.confirmation)]
        if certificate is not None and certificate.holds:
            said.append(f"certified: {certificate.reason}")
        elif certificate is not None:
            number = accepted.trial.number
            said.insert(
                0,
                f"trial {number} meets the goal on what it was scored on, and it is not certified: "
                f"{certificate.reason}",
            )
        said.append(self._coarseness(accepted))
        confirmed = accepted.confirmation.metrics if accepted.confirmation else None
        return self.result(
            accepted.candidate,
            accepted.trial,
            goal_met=certificate is None or certificate.holds,
            reason="; ".join(filter(None, said)),
            evidence=_Evidence(confirmed, accepted.holdout, certificate),
        )

    def _coarseness(self, accepted: Accepted) -> str:
        """Say where samples are too few to tell a pass from a miss; '' where they are enough."""
        bench = self.bench
        confirmed = accepted.confirmation
        scores = confirmed.scores if confirmed is not None else bench.yardstick.scores
        goal = bench.criterion.allowed(bench.yardstick.baseline)
        return coarseness(scores, goal[0] if goal is not None else None)

    def _noise(self, confirmation: Judged | None) -> str:
        """Say how far noise was ruled out; '' where there is none."""
        yardstick = self.bench.yardstick
        if not yardstick.noise:
            return ""
        if confirmation is None:
            return f"{yardstick.explain()}, and the winner was not confirmed"
        return (
            f"{yardstick.explain()}; the winner was confirmed by {confirmation.runs} evaluations "
            f"of its own: {confirmation.reason}"
        )

    def interrupted(self, reason: str) -> Result:
        """Return the best so far of a run that a signal ended, without examining it."""
        winner = self.bench.best()
        if winner is None:
            return self.unhelped(reason, interrupted=True)
        if self.settings.confirm or self.bench.scoring.held_out is not None:
            reason = (
                f"{reason}; trial {winner.number} passed in the search and was not confirmed: "
                "resume the run for that"
            )
        return self.result(
            self.acceptance.candidate(winner),
            winner,
            goal_met=self.acceptance.certifying is None,
            reason=reason,
            interrupted=True,
        )

    def unhelped(self, reason: str, *, interrupted: bool = False) -> Result:
        """Return the result of a run without a winner.

        The float model where what passes is no gain, else the closest trial.
        """
        passed = self.bench.no_gain()
        if passed is None:
            return self.missed(reason, interrupted=interrupted)
        return self.kept_float(passed, reason, interrupted=interrupted)

    def kept_float(
        self, passed: Trial, reason: str, *, interrupted: bool = False
    ) -> Result:
        """Return the float model, which meets the goal and is no worse than the best that does."""
        figures = compared(passed, tuple(self.bench.objectives))
        return self.float_model(
            f"the float model is kept: {widths(passed)} is {figures} here "
            f"(trial {passed.number}, the best that passes; {reason})",
            goal_met=True,
            interrupted=interrupted,
        )

    def missed(self, reason: str, *, interrupted: bool = False) -> Result:
        """Return the closest of a run whose goal was not reached, and by how much it missed."""
        trials = self.bench.trials
        done = [t for t in without_refined(trials) if t.state != "failed"]
        if not done:
            why = f"{_why_nothing(trials)} ({reason})"
            return self.float_model(why, interrupted=interrupted)
        # A budget is hard: what keeps it comes before what is more accurate, and what was not
        # measured is not known to.
        kept = [t for t in done if self._keeps_budgets(t)]
        left = self.bench.narrowed(kept or done)
        closest = max(left, key=lambda t: (t.margin, -t.number))
        holdout, certificate = self.acceptance.examined.get(
            closest.number, (None, None)
        )
        return self.result(
            self.acceptance.candidate(closest),
            closest,
            reason=f"no trial reached the goal; the closest: {self._miss(closest)} ({reason})",
            evidence=_Evidence(None, holdout, certificate),
            interrupted=interrupted,
        )

    def _keeps_budgets(self, trial: Trial) -> bool:
        """Return whether a trial was found to keep every budget.

        One whose evaluation was stopped was not measured.
        """
        return not trial.over and (trial.state == "complete" or not self.bench.budgets)

    def _miss(self, trial: Trial) -> str:
        """Say why a trial does not pass."""
        if trial.refused:
            return f"trial {trial.number} passed in the search, but not {trial.refused}"
        bench = self.bench
        verdict = bench.criterion.judge(trial.metrics, bench.baseline.metrics)
        short = "" if verdict.passed else verdict.reason
        if verdict.passed and bench.yardstick.noise and not trial.over:
            short = (
                f"{verdict.reason}, by less than the noise of {trial.runs} evaluations"
            )
        over = explain(trial.over, bench.budgets)
        return "; ".join(filter(None, (short, over, bench.yardstick.explain())))

    def unready(self, reason: str, *, interrupted: bool = False) -> Result:
        """Return the float model where no recipe can be carried out yet, whatever is known."""
        kept = len(self.bench.trials)
        if kept:
            reason = f"{reason}; {kept} trials are kept in the history: resume the run"
        return self.float_model(reason, interrupted=interrupted)

    def float_model(
        self, reason: str, *, goal_met: bool = False, interrupted: bool = False
    ) -> Result:
        """Return the float model as the result."""
        return self.result(
            self.bench.reference.candidate,
            self.bench.baseline,
            goal_met=goal_met,
            reason=reason,
            interrupted=interrupted,
        )

    def result(
        self,
        candidate: Candidate,
        best: Trial,
        *,
        reason: str,
        goal_met: bool = False,
        evidence: _Evidence = _NONE,
        interrupted: bool = False,
    ) -> Result:
        """Gather the evidence."""
        bench, opened = self.bench, self.acceptance.opened
        own = (
            bench.backends.get(candidate.recipe.backend)
            or bench.backends[opened[0].name]
        )
        coverage = own.realizer.coverage(candidate)
        is_worth_a_look = logging.WARNING if coverage.kept else logging.INFO
        bench.tell(coverage.summary(), is_worth_a_look)
        layers = {} if interrupted else figures_by_layer(bench, own, candidate)
        fixed = {
            o.name: fixed_ops(o, bench.backends[o.name].space)
            for o in opened
            if o.name in bench.backends
        }
        return Result(
            candidate,
            self.native,
            (*self._notes(best), coverage.summary()),
            coverage,
            self.acceptance.settings_of(candidate.recipe),
            goal_met=goal_met,
            reason=reason,
            best=best,
            baseline=bench.baseline,
            floats=dict(bench.floats),
            trials=bench.trials,
            config=self.settings,
            goal=self.goal,
            confirmed=evidence.confirmed,
            holdout=evidence.holdout,
            certificate=evidence.certificate,
            views={o.name: o.view for o in opened},
            fixed=fixed,
            storage=bench.history.location,
            interrupted=interrupted,
            layers=layers,
            seconds=time.perf_counter() - bench.clock.began,
            machine=machine_record(opened),
            data=self._data(own),
            remarks=bench.remarks.texts,
            why_best=self._why_best(best),
            final=self.acceptance.final.record,
            front=whole_front(bench, best),
        )

    def _data(self, backend: Backend) -> Mapping[str, Any]:
        """Return what calibrated, timed and judged, as far as it is known."""
        held_out = self.bench.held_out
        scores = held_out.scores if held_out is not None else None
        scored = next(iter(self.bench.baseline.sampling.values()), None)
        return {
            **data_record(backend.data, self.source),
            "scoring": {"samples": scored.count if scored is not None else None},
            "holdout": holdout_record(self.share, scores),
        }

    def _why_best(self, best: Trial) -> str:
        """Say why this trial is the best; '' for one that is not (the float model, the closest)."""
        found = self.bench.choice()
        if found is None or found.best.number != best.number:
            return ""
        final = self.acceptance.final.record
        was_timed = best.number in final.get("trials", ())
        return why_best(found, final["rounds"] if was_timed else 0)

    def _notes(self, best: Trial) -> Iterator[str]:
        backends = self.bench.backends
        for opened in self.acceptance.opened:
            known = (
                backends[opened.name].space if opened.name in backends else opened.view
            )
            yield from (*opened.notes, *known.notes)
            if opened.name == best.recipe.backend:
                yield from known_slower(opened, best.recipe)
        yield from self.left_out


def _why_nothing(trials: Sequence[Trial]) -> str:
    """Say that no trial was completed, and the last error."""
    failed = next((t for t in reversed(trials) if t.error), None)
    if failed is None:
        return "no trial was completed"
    return f"no trial was completed; the last error: {failed.error.splitlines()[-1]}"
