"""The end of a run: choose the winner, save it, load it and score it again, and hand it back with the evidence."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from octavo.core.contract.adapter import Candidate, Opened
from octavo.core.contract.plugins import PluginHost
from octavo.core.scoring.certificate import Certificate
from octavo.core.scoring.certifying import Certifying, coarseness
from octavo.core.scoring.choice import compared
from octavo.core.scoring.scoring import Holdout
from octavo.core.scoring.yardstick import Judged
from octavo.core.values.budgets import explain
from octavo.core.values.trial import Trial, widths

from .config import TuningConfig
from .loop import Loop, tell
from .result import MODEL, Result, load_candidate, save_candidate
from .rules import fixed_ops
from .speeds import known_slower


@dataclass(frozen=True)
class Accepted:
    """A trial that stands.

    Attributes:
        trial: It.
        candidate: Its model.
        confirmation: The verdict after it was saved, loaded and scored again; None where that was turned off.
        holdout: What it scored on held-out data; None where none was held out.
        certificate: How sure it is on new data; None where that was not asked for.
    """

    trial: Trial
    candidate: Candidate
    confirmation: Judged | None
    holdout: Holdout | None
    certificate: Certificate | None


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
        certifying: Certifies winners; None where no confidence is asked for.
        examined: What examined trials scored on held-out data, by number.
        left_out: What the search did not try, and why.
    """

    loop: Loop
    settings: TuningConfig
    goal: str
    native: bool
    opened: tuple[Opened, ...]
    began: float
    model: Any
    host: PluginHost
    certifying: Certifying | None = None
    left_out: tuple[str, ...] = ()
    examined: dict[int, tuple[Holdout, Certificate | None]] = field(default_factory=dict)

    def accept(self) -> Accepted | None:
        """Return the best passing trial that stands: saved and loaded it still passes, and on the held-out data.

        One that does not is refused, in the history too, and the next best takes its place. None when none is left: the search may
        then go on with what it was not told before.
        """
        loop = self.loop
        while (winner := loop.best()) is not None:
            found = self._examine(winner)
            if isinstance(found, Accepted):
                return found
            loop.refuse(winner, found)
            tell(
                loop.progress,
                f"trial {winner.number} passed in the search, but not {found}; it is refused",
            )
        return None

    def _examine(self, winner: Trial) -> Accepted | str:
        """Return a trial that stands, or where it failed and why."""
        candidate = self._candidate(winner)
        confirmed: Judged | None = None
        clock = self.loop.clock
        if self.settings.confirm and not clock.lacks_time_for("the winner's confirmation"):
            confirmed, problem = self._confirm(candidate, winner)
            if problem:
                return f"after saving and loading it again: {problem}"
        if self._no_time_to_hold_out():
            return Accepted(winner, candidate, confirmed, None, None)
        holdout, certificate = self._on_holdout(candidate, confirmed)
        if holdout is not None:
            self.examined[winner.number] = (holdout, certificate)
            if not holdout.passed:
                return f"on the held-out data: {holdout.reason}"
        possible = self.certifying is not None and not self.certifying.why
        if possible and certificate is not None and not certificate.holds:
            return f"surely enough: {certificate.reason}"
        return Accepted(winner, candidate, confirmed, holdout, certificate)

    def _no_time_to_hold_out(self) -> bool:
        """True if the held-out data is left out for lack of time; never where a certificate was asked for."""
        if self.certifying is not None or self.loop.held_out is None:
            return False
        return self.loop.clock.lacks_time_for("the winner's score on the held-out data")

    def _on_holdout(
        self, candidate: Candidate, confirmed: Judged | None
    ) -> tuple[Holdout | None, Certificate | None]:
        """Score a winner on the held-out data, against the float model, and certify it where that is asked for."""
        loop, tries = self.loop, self._tries()
        if loop.held_out is None:
            return None, self.certifying.none(tries) if self.certifying is not None else None
        loop.measure_held_out()
        first = loop.scoring.held_out_scores(candidate)
        judged = loop.held_out.confirm(candidate, first, tries)
        holdout = Holdout(loop.held_out.baseline, judged.metrics, judged.passed, judged.reason)
        if self.certifying is None:
            return holdout, None
        searched = confirmed.scores if confirmed is not None else None
        return holdout, self.certifying.certify(first, searched, tries)

    def _tries(self) -> int:
        """Return how many winners were examined, this one among them."""
        return 1 + sum(bool(t.refused) for t in self.loop.history.trials)

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
                f"trial {number} meets the goal on what it was scored on, and it is not certified: {certificate.reason}",
            )
        said.append(self._coarseness(accepted))
        return self.result(
            accepted.candidate,
            accepted.trial,
            goal_met=certificate is None or certificate.holds,
            reason="; ".join(filter(None, said)),
            certificate=certificate,
            confirmed=accepted.confirmation.metrics if accepted.confirmation else None,
            holdout=accepted.holdout,
        )

    def _coarseness(self, accepted: Accepted) -> str:
        """Say where there are too few samples to tell a pass from a miss; '' where there are enough."""
        loop = self.loop
        confirmed = accepted.confirmation
        scores = confirmed.scores if confirmed is not None else loop.yardstick.scores
        goal = loop.criterion.allowed(loop.yardstick.baseline)
        return coarseness(scores, goal[0] if goal is not None else None)

    def interrupted(self, reason: str) -> Result:
        """Return the best so far of a run that a signal ended, without examining it."""
        winner = self.loop.best()
        if winner is None:
            return self.unhelped(reason, interrupted=True)
        if self.settings.confirm or self.loop.scoring.held_out is not None:
            reason = f"{reason}; trial {winner.number} passed in the search and was not confirmed: resume the run for that"
        return self.result(
            self._candidate(winner),
            winner,
            goal_met=self.certifying is None,
            reason=reason,
            interrupted=True,
        )

    def unhelped(self, reason: str, *, interrupted: bool = False) -> Result:
        """Return the result of a run without a winner: the float model where what passes is no gain, else the closest."""
        passed = self.loop.no_gain()
        return (
            self.missed(reason, interrupted=interrupted)
            if passed is None
            else self.kept_float(passed, reason, interrupted=interrupted)
        )

    def kept_float(self, passed: Trial, reason: str, *, interrupted: bool = False) -> Result:
        """Return the float model, which meets the goal and is no worse than the best trial that does."""
        assert self.loop.baseline is not None
        figures = compared(passed, tuple(self.loop.objectives))
        return self.result(
            self.loop.reference.candidate,
            self.loop.baseline,
            goal_met=True,
            reason=f"the float model is kept: {widths(passed)} is {figures} here (trial {passed.number}, the best that passes; {reason})",
            interrupted=interrupted,
        )

    def missed(self, reason: str, *, interrupted: bool = False) -> Result:
        """Return the closest of a run whose goal was not reached, and by how much it missed."""
        loop = self.loop
        trials = [t for t in loop.history.trials if t.number > 0]
        done = [t for t in trials if t.state != "failed"]
        if not done:
            return self._nothing(trials, reason, interrupted)
        # A budget is hard: what keeps it comes before what is more accurate, and what was not measured is not known to.
        closest = max(done, key=lambda t: (self._keeps_budgets(t), t.margin, -t.number))
        holdout, certificate = self.examined.get(closest.number, (None, None))
        return self.result(
            self._candidate(closest),
            closest,
            reason=f"no trial reached the goal; the closest: {self._miss(closest)} ({reason})",
            holdout=holdout,
            certificate=certificate,
            interrupted=interrupted,
        )

    def _keeps_budgets(self, trial: Trial) -> bool:
        """Return whether a trial was found to keep every budget; one whose evaluation was stopped was not measured."""
        return not trial.over and (trial.state == "complete" or not self.loop.budgets)

    def _miss(self, trial: Trial) -> str:
        """Say why a trial does not pass."""
        if trial.refused:
            return f"trial {trial.number} passed in the search, but not {trial.refused}"
        loop = self.loop
        assert loop.baseline is not None
        verdict = loop.criterion.judge(trial.metrics, loop.baseline.metrics)
        short = "" if verdict.passed else verdict.reason
        if verdict.passed and loop.yardstick.noise and not trial.over:
            short = f"{verdict.reason}, by less than the noise of {trial.runs} evaluations"
        return "; ".join(
            filter(None, (short, explain(trial.over, loop.budgets), loop.yardstick.explain()))
        )

    def _nothing(self, trials: list[Trial], reason: str, interrupted: bool) -> Result:
        failed = next((t for t in reversed(trials) if t.error), None)
        why = (
            f"no trial was completed; the last error: {failed.error.splitlines()[-1]}"
            if failed
            else "no trial was completed"
        )
        assert self.loop.baseline is not None
        return self.result(
            self.loop.reference.candidate,
            self.loop.baseline,
            reason=f"{why} ({reason})",
            interrupted=interrupted,
        )

    def unready(self, reason: str, *, interrupted: bool = False) -> Result:
        """Return the float model where no recipe can be carried out yet, whatever trials the history holds."""
        assert self.loop.baseline is not None
        kept = len([t for t in self.loop.history.trials if t.number > 0])
        if kept:
            reason = f"{reason}; {kept} trials are kept in the history: resume the run"
        return self.result(
            self.loop.reference.candidate,
            self.loop.baseline,
            reason=reason,
            interrupted=interrupted,
        )

    def _settings_of(self, candidate: Candidate) -> dict[str, Any]:
        """Return the settings of the backend that a model was made with."""
        settings = next(
            (o.settings for o in self.opened if o.name == candidate.recipe.backend), None
        )
        return settings.to_save() if settings is not None else {}

    def _candidate(self, trial: Trial) -> Candidate:
        return self.loop.backends[trial.recipe.backend].realizer.candidate(trial.recipe)

    def _noise(self, confirmation: Judged | None) -> str:
        """Say how far noise was ruled out; '' where there is none."""
        yardstick = self.loop.yardstick
        if not yardstick.noise:
            return ""
        if confirmation is None:
            return f"{yardstick.explain()}, and the winner was not confirmed"
        own = f"the winner was confirmed by {confirmation.runs} evaluations of its own: {confirmation.reason}"
        return f"{yardstick.explain()}; {own}"

    def _confirm(self, candidate: Candidate, winner: Trial) -> tuple[Judged | None, str]:
        """Return the verdict after a round trip through the disk, and why it does not do ('' if it does)."""
        loop = self.loop
        own = candidate.recipe.backend == self.opened[0].name
        with tempfile.TemporaryDirectory(prefix="octavo-") as folder:
            try:
                saved = save_candidate(
                    candidate,
                    Path(folder) / "result",
                    {"backend_settings": self._settings_of(candidate)},
                )
                loaded = load_candidate(saved, self.model if own else None, host=self.host)
                first = loop.scoring.full(loaded)
                loop.doubt(winner, first.metrics)
                judged = loop.yardstick.confirm(loaded, first, self._tries())
                size = sum(p.stat().st_size for p in (saved / MODEL).rglob("*") if p.is_file())
            except Exception as error:
                return None, f"{type(error).__name__}: {error}"
        limit = loop.budgets.get("size", float("inf"))
        if size > limit * loop.reference.bytes * (1 + 1e-9):
            share = size / loop.reference.bytes
            return (
                judged,
                f"its files hold {share:.4g} of the float model's, and {limit:g} is allowed",
            )
        return judged, "" if judged.passed else judged.reason

    def _notes(self, best: Trial) -> Iterator[str]:
        backends = self.loop.backends
        for opened in self.opened:
            known = backends[opened.name].space if opened.name in backends else opened.view
            yield from (*opened.notes, *known.notes)
            if opened.name == best.recipe.backend:
                yield from known_slower(opened, best.recipe)
        yield from self.left_out

    def result(
        self,
        candidate: Candidate,
        best: Trial,
        *,
        reason: str,
        goal_met: bool = False,
        confirmed: Mapping[str, float] | None = None,
        holdout: Holdout | None = None,
        certificate: Certificate | None = None,
        interrupted: bool = False,
    ) -> Result:
        """Gather the evidence."""
        loop = self.loop
        assert loop.baseline is not None
        own = loop.backends.get(candidate.recipe.backend) or loop.backends[self.opened[0].name]
        coverage = own.realizer.coverage(candidate)
        if coverage.kept or loop.progress:
            tell(loop.progress, coverage.summary())
        return Result(
            candidate,
            self.native,
            (*self._notes(best), coverage.summary()),
            coverage,
            self._settings_of(candidate),
            goal_met=goal_met,
            reason=reason,
            best=best,
            baseline=loop.baseline,
            trials=tuple(t for t in loop.history.trials if t.number > 0),
            config=self.settings,
            goal=self.goal,
            confirmed=confirmed,
            holdout=holdout,
            certificate=certificate,
            views={o.name: o.view for o in self.opened},
            fixed={
                o.name: fixed_ops(o, loop.backends[o.name].space)
                for o in self.opened
                if o.name in loop.backends
            },
            storage=loop.history.location,
            interrupted=interrupted,
            seconds=time.perf_counter() - self.began,
        )
