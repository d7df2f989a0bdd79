"""The tuning loop: one, for every backend and strategy.

ask -> quantize (cached) -> apply -> evaluate -> measure -> judge -> record (durable) -> tell
"""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Protocol

from octavo.core.calibration.data import CalibrationData
from octavo.core.contract.adapter import Batch, Candidate, Opened
from octavo.core.contract.criterion import Criterion
from octavo.core.contract.objective import Objective, Subject
from octavo.core.contract.strategy import Wait
from octavo.core.errors import ConfigError, EvaluationError, PluginError, StoreError, said
from octavo.core.quantizing.realize import Realizer
from octavo.core.scoring.broken_model import CHEAP, SHUFFLES, broken_model, called_better, refusal
from octavo.core.scoring.certifying import Certifying, certifying, coarseness
from octavo.core.scoring.choice import choose
from octavo.core.scoring.executor import traceback_text
from octavo.core.scoring.noise import FEWEST, Noise
from octavo.core.scoring.racing import RaceConfig, Rejection
from octavo.core.scoring.scoring import Scoring, first_samples
from octavo.core.scoring.yardstick import Yardstick
from octavo.core.storage.history import History
from octavo.core.system.clock import Clock
from octavo.core.system.signals import OutOfTime, deadline
from octavo.core.values.budgets import float_keeps, overruns
from octavo.core.values.recipe import Recipe
from octavo.core.values.space import TuningSpace
from octavo.core.values.trial import Measurement, Trial

from .fingerprint import another_count, another_score


@dataclass(frozen=True)
class Backend:
    """One backend of a run: the opened model, its space, what quantizes it, and batches in its form."""

    opened: Opened
    space: TuningSpace
    realizer: Realizer
    data: CalibrationData


REFUSED_MARGIN = -0.01
"""The margin of a trial that passed in the search and was refused after it, at most. Strategies rank by it, so it is next to a pass; and
it is a constant, so that nothing of the held-out data but the refusal itself reaches the search."""

ALIKE = 5
"""So many candidates in a row that fail alike, and none that did not fail, end the run: the fault is not in the recipes."""

UNSTEADY = 0.25  # spread of the float model's timing, as a share of it, from which on it is told


class Asks(Protocol):
    """What the loop needs of a strategy (or of several, joined)."""

    def ask(self) -> Recipe | Wait | None:
        """Return the next recipe."""

    def tell(self, trial: Trial) -> None:
        """Take a finished trial."""

    def explain(self) -> str:
        """Say where the search stands."""


class Progress:
    """Told how a run goes; subclass and override what is of interest. It must not raise."""

    def started(self, baseline: Trial, goal: str, max_trials: int, space_size: int) -> None:
        """The float model is scored and the search begins."""

    def trying(self, number: int, recipe: Recipe) -> None:
        """A trial begins."""

    def finished(self, trial: Trial, best: Trial | None, seconds_left: float | None) -> None:
        """A trial ended and is on disk. ``seconds_left`` estimates the rest of the search, None while unknown."""

    def note(self, text: str) -> None:
        """Something that the user should know (a warning, a decision)."""

    def ended(self, reason: str) -> None:
        """The search is over."""


@dataclass
class Loop:
    """Runs trials and keeps their record.

    Attributes:
        backends: By name.
        reference: The float model as given, for interleaved measurements.
        scoring: Scores candidates.
        criterion: Judges.
        yardstick: The float model's score on the search's data.
        held_out: The same on held-out data; None where there is none.
        objectives: By name, most important first.
        history: Where trials are kept.
        progress: Told how it goes.
        notify: Called after each trial with it (plugins' hook).
        budgets: Hard limits; a trial passes only if it keeps them.
        checked: What must be measured for the budgets beside the objectives, by name.
        clock: The run's time limit.
    """

    backends: Mapping[str, Backend]
    reference: Subject
    scoring: Scoring
    criterion: Criterion
    yardstick: Yardstick
    held_out: Yardstick | None
    objectives: Mapping[str, Objective]
    history: History
    progress: Sequence[Progress] = ()
    notify: Callable[[Trial], None] = lambda trial: None
    budgets: Mapping[str, float] = field(default_factory=dict)
    checked: Mapping[str, Objective] = field(default_factory=dict)
    clock: Clock = field(default_factory=Clock)
    baseline: Trial | None = None
    _known: dict[str, Trial] = field(default_factory=dict)
    _started: bool = False
    _shown: set[int] = field(default_factory=set)

    def measure_baseline(self, noise_runs: int, race: RaceConfig | None = None) -> Trial:
        """Score the float model, unless the history holds its score, and measure it.

        Args:
            noise_runs: How often it is scored. Where single samples can be scored and a share of them comes out the same again,
                all of them would: then it is once.
            race: How evaluations may be stopped early; None scores every sample of every candidate.

        Raises:
            EvaluationError: If the score function fails on the float model, or changes it.
            ConfigError: If the criterion makes no sense at this score.
        """
        candidate = self.reference.candidate
        for trial in self.history.trials:
            if trial.number == 0:
                self.yardstick.restore(trial.metrics, Noise(trial.noise, trial.runs))
                self._check_score(trial, race)
                self.baseline = trial
                return trial
        before = candidate.fingerprint()
        began = time.perf_counter()
        self.yardstick.measure(candidate, 1)
        scores = self.yardstick.scores
        assert scores is not None
        alone = noise_runs == 1 or self.clock.lacks_time_for(
            "a second look at the float model's score, to see whether it varies"
        )
        if not alone and not self.scoring.repeats(candidate, scores):
            self.yardstick.measure(candidate, noise_runs)
        if candidate.fingerprint() != before:
            raise EvaluationError(
                "the score function changes the model's parameters (training, in-place edits?); give one that only reads the model"
            )
        if varies := self.yardstick.warning():
            tell(self.progress, varies)
        goal = self.criterion.allowed(self.yardstick.baseline)
        if few := coarseness(scores, goal[0] if goal is not None else None):
            tell(self.progress, few)
        if race is not None:
            self.scoring.prepare_race(scores, candidate, self.criterion, race)
        evaluated = time.perf_counter() - began
        measured = self._measure(self.reference)
        if unsteady := _unsteady(measured):
            tell(self.progress, unsteady)
        seconds = {"evaluate": evaluated, "measure": time.perf_counter() - began - evaluated}
        metrics, noise = self.yardstick.baseline, self.yardstick.noise
        trial = Trial(
            0,
            candidate.recipe,
            runs=noise.runs,
            noise=noise.deviation,
            metrics=metrics,
            passed=True,
            margin=self.criterion.judge(metrics, metrics).margin,
            objectives=measured,
            seconds=seconds,
        )
        self.history.begin(0, candidate.recipe)
        self.history.finish(trial)
        self.history.keep("samples", first_samples(scores))
        self.baseline = trial
        return trial

    def _check_score(self, before: Trial, race: RaceConfig | None) -> None:
        """Score the float model again as a run goes on: wholly, or a part where single samples can be scored.

        Raises:
            StoreError: If another score comes out than the history holds: its trials were judged by another score.
            EvaluationError: If the score function fails on the float model.
        """
        candidate, kept = self.reference.candidate, self.history.fact("samples")
        try:
            if self.scoring.part_is_alike(candidate, kept, race):
                return
            scores = self.yardstick.again(candidate)
            why = another_count(kept, scores)
            why = why or another_score(
                before.metrics, scores.metrics, lambda: self.scoring.full(candidate).metrics
            )
        except EvaluationError:
            raise
        except Exception as error:
            raise EvaluationError(
                f"the score function fails on the float model: {said(error)}"
            ) from error
        if why:
            raise self.history.refuse_resume(f"the float model's score is another: {why}")
        if race is not None:
            self.scoring.prepare_race(scores, candidate, self.criterion, race)

    def compare_with_given(self, given: Opened, batch: Batch) -> None:
        """Tell how the model as given does beside the baseline, which is its export's float model on another backend.

        Args:
            given: The model on its own backend.
            batch: In its form.
        """
        assert self.baseline is not None
        subject = Subject(given.session.reference(), batch)
        try:
            scores = self.scoring.full(subject.candidate).metrics
            measured = self._measure(subject)
        except Exception as error:
            tell(
                self.progress,
                f"the float model as given could not be scored on {given.name}: {said(error)}",
            )
            return
        finally:
            subject.close()
        figures = [f"{name} {value:.6g}" for name, value in scores.items()]
        figures += [f"{name} {m.value:.4g} {m.unit}" for name, m in measured.items()]
        here = ", ".join(f"{name} {value:.6g}" for name, value in self.baseline.metrics.items())
        tell(
            self.progress,
            f"the float model as given, on {given.name}: {', '.join(figures)}; the baseline on {self._searched()}: {here}",
        )
        verdict = self.criterion.judge(self.baseline.metrics, scores)
        if not verdict.passed:
            tell(
                self.progress,
                f"the export alone loses more than is tolerated: {verdict.reason}; the goal is kept against the export",
            )

    def _searched(self) -> str:
        return ", ".join(name for name, backend in self.backends.items() if backend.space.tunable)

    def check_held_out(self) -> None:
        """Compare the float model's score on held-out data with that of the run which this one goes on from.

        Raises:
            StoreError: If the run that goes on has other held-out data than before.
        """
        if self.held_out is None:
            return
        now = self.held_out.baseline
        before = self.history.keep("held_out", dict(now))
        score = self.held_out.score
        if why := another_score(before, now, lambda: score(self.reference.candidate).metrics):
            raise self.history.refuse_resume(
                f"the float model's score on held-out data is another: {why}"
            )

    def run(
        self, strategy: Asks, *, max_trials: int, stop_at_goal: bool, goal: str, space_size: int
    ) -> str:
        """Ask, try, record, tell, until the strategy, the goal or a limit ends it. Returns the reason.

        Trials that the history holds already are told, never run again: so a run goes on after a crash where it was, and after a
        winner was refused, with a strategy that is made anew. They count, whether or not the strategy asks for them again.
        """
        assert self.baseline is not None
        self._known = {t.recipe.digest: t for t in self.history.trials if t.number > 0}
        if not self._started:
            self._started = True
            for p in self.progress:
                p.started(self.baseline, goal, max_trials, space_size)
        told = set[str]()
        repeats = 0
        while True:
            used = len(self._known)
            if used >= max_trials and len(told) == used:
                return f"{max_trials} trials were used up"
            if ended := self._out_of_time():
                return ended
            try:
                with deadline(self.clock.until(self._reserve())):
                    recipe = strategy.ask()
            except OutOfTime:
                return f"{self.clock} while the strategy looked for the next recipe"
            if recipe is None:
                return strategy.explain() or "the strategy has nothing left to try"
            if isinstance(recipe, Wait):
                raise PluginError(
                    "the strategy waits for a trial although none is pending; this is a fault of the strategy"
                )
            known = self._known.get(recipe.digest)
            if known is not None and recipe.digest in told:
                # Asked twice: answered from the history. A strategy that only repeats itself has come to its end.
                repeats += 1
                strategy.tell(replace(known, reused=known.number))
                if repeats > 3 * max_trials:
                    return "the strategy only repeats recipes whose results are known"
                continue
            if known is None and used >= max_trials:
                return f"{max_trials} trials were used up"
            trial = known or self._attempt(recipe)
            self._known[recipe.digest] = trial
            told.add(recipe.digest)
            strategy.tell(trial)
            if known is None:
                self.notify(trial)
            best = self.best()
            if ended := self._alike(told):
                return ended
            left = self._estimate(max_trials - len(self._known))
            if trial.number not in self._shown:
                self._shown.add(trial.number)
                for p in self.progress:
                    p.finished(trial, best, left)
            if stop_at_goal and trial.passed and best is not None:
                return f"trial {trial.number} reached the goal"

    def _reserve(self) -> float:
        """Seconds that the end of the run needs: without a winner there is nothing to confirm."""
        return self.clock.reserve if self.best() is not None else 0.0

    def _out_of_time(self) -> str:
        """Return why the search ends for lack of time; '' where it goes on.

        With a winner in hand, a trial is only begun if it is believed to end in time for the confirmation. Without one,
        until the limit: the last trial may then run past it.
        """
        if self.clock.ran_out:
            return str(self.clock)
        if self.best() is not None and self.clock.left < self._trial_seconds() + self._reserve():
            return f"{self.clock} but for the confirmation: another trial would end after it"
        return ""

    def _trial_seconds(self) -> float:
        """Return what a trial is believed to take: as the ones before, else as the float model's evaluation and timing."""
        spent = [sum(t.seconds.values()) for t in self.history.trials if t.number > 0 and t.seconds]
        if spent:
            return sum(spent) / len(spent)
        assert self.baseline is not None
        seconds = self.baseline.seconds
        return seconds.get("evaluate", 0.0) / max(1, self.baseline.runs) + seconds.get(
            "measure", 0.0
        )

    def _estimate(self, trials: int) -> float | None:
        """Return how many seconds so many further trials take, within the limit; None while nothing is known."""
        if not any(t.number > 0 and t.seconds for t in self.history.trials):
            return None
        return min(trials * self._trial_seconds(), max(0.0, self.clock.left))

    def measure_held_out(self) -> None:
        """Score the float model on the held-out data, where there is some, as often as the score's noise asks for.

        Raises:
            EvaluationError: If the score of that data fails on the float model.
            ConfigError: If the criterion makes no sense at that score.
        """
        if self.held_out is not None:
            self.held_out.measure(self.reference.candidate, FEWEST if self.yardstick.noise else 1)

    def prepare_certificate(self, *, optional: bool) -> Certifying | None:
        """Score the float model on the held-out data, and make ready to certify winners there if a confidence is asked for.

        Args:
            optional: Whether the samples were parted for the certificate alone: a score without single samples then stays whole.

        Raises:
            EvaluationError: If the score of the held-out data fails on the float model.
            ConfigError: If the criterion makes no sense at that score, or the range of a sample's score must be said.
        """
        asked = getattr(self.criterion.config, "confidence", None) is not None
        if asked and self.yardstick.scores is None:
            self.yardstick.scores = self.scoring.full(self.reference.candidate)
        scores = self.yardstick.scores
        if optional and scores is not None and scores.per_sample is None:
            self.held_out = None
        self.measure_held_out()
        if not asked or scores is None:
            return None
        held_out = self.held_out.scores if self.held_out is not None else None
        found = certifying(self.criterion, self.yardstick.baseline, scores, held_out)
        if found is not None and found.why:
            tell(self.progress, f"nothing can be certified: {found.why}")
        elif found is not None:
            self.yardstick.foreseen = found.foreseen
        return found

    def check_direction(self, realizer: Realizer, seed: int) -> None:
        """Score a model that is broken on purpose, where evaluations are cheap, and refuse a score that calls it better.

        Args:
            realizer: Of the model's own backend, calibrated.
            seed: Of the shuffles.

        Raises:
            ConfigError: If it does.
        """
        asked = getattr(self.criterion.config, "guard", False)
        if not asked or self.history.fact("guard:done"):
            return
        if self.yardstick.seconds_each > CHEAP:
            self.history.keep("guard:done", True)
            return
        if self.history.fact("guard:began") and not self.history.fact("guard:refused"):
            tell(
                self.progress,
                "the check with a broken model ended the last run, and is left out of this one",
            )
            return
        self.history.keep("guard:began", True)
        for number in range(SHUFFLES):
            found = self._broken_scores(realizer, seed + number)
            if found is None or not called_better(self.yardstick, found[1]):
                self.history.keep("guard:done", True)
                return
        self.history.keep("guard:refused", True)
        assert found is not None
        raise ConfigError(refusal(found[0], self.yardstick, found[1]))

    def _broken_scores(
        self, realizer: Realizer, seed: int
    ) -> tuple[str, Mapping[str, float]] | None:
        """Return the op that was broken and the scores; None where there is no such model, or it cannot be scored."""
        try:
            made = broken_model(realizer, seed)
            return None if made is None else (made[0], self.scoring.full(made[1]).metrics)
        except StoreError:
            raise
        except Exception:
            # A broken model may overflow, or a recipe fail as any may: that says nothing of the direction, and trials tell it.
            return None

    def doubt(self, trial: Trial, now: Mapping[str, float]) -> None:
        """Notice that a score varies after all, where a trial's model scores otherwise a second time."""
        self.yardstick.doubt(self.reference.candidate, trial.metrics, now)
        noise = self.yardstick.noise
        if self.baseline is not None and noise.deviation != self.baseline.noise:
            self.baseline = replace(
                self.baseline,
                metrics=self.yardstick.baseline,
                runs=noise.runs,
                noise=noise.deviation,
            )
            tell(self.progress, self.yardstick.warning())

    def best(self) -> Trial | None:
        """Return the best passing trial so far; None while none of them is worth it, where the float model itself passes."""
        return choose(
            self.history.trials,
            tuple(self.objectives),
            self.baseline if float_keeps(self.budgets) else None,
        )

    def no_gain(self) -> Trial | None:
        """Return the best passing trial where none improves on the float model; else None."""
        found = choose(self.history.trials, tuple(self.objectives))
        return found if found is not None and self.best() is None else None

    def _alike(self, told: set[str]) -> str:
        """Return why the search ends where every candidate so far failed with the same error; '' where it goes on."""
        trials = [t for t in self.history.trials if t.recipe.digest in told]
        if len(trials) < ALIKE or any(t.state != "failed" for t in trials):
            return ""
        last = [_told_error(t.error) for t in trials[-ALIKE:]]
        if len({_without_numbers(error) for error in last}) > 1:
            return ""
        return f"every candidate failed, the last {ALIKE} alike: {last[-1]}"

    def refuse(self, trial: Trial, why: str, margin: float = REFUSED_MARGIN) -> None:
        """Let a trial that passed count as missed, for this run and for every one that goes on from its history."""
        self.history.refuse(
            replace(trial, passed=False, margin=min(margin, REFUSED_MARGIN), refused=why)
        )

    def _attempt(self, recipe: Recipe) -> Trial:
        number = max((t.number for t in self.history.trials), default=0) + 1
        for p in self.progress:
            p.trying(number, recipe)
        fatal = self.history.begin(number, recipe)
        try:
            trial = (
                Trial(number, recipe, "failed", error=fatal) if fatal else self._try(number, recipe)
            )
        except BaseException:
            # Ctrl-C, a signal or a lost store: the recipe is run again when the run goes on.
            with suppress(StoreError):
                self.history.interrupt(number)
            raise
        self.history.finish(trial)
        return trial

    def _try(self, number: int, recipe: Recipe) -> Trial:
        """Run one trial. Whatever goes wrong in it is recorded and the search goes on."""
        backend = self.backends[recipe.backend]
        seconds: dict[str, float] = {}
        mark = time.perf_counter()
        subject: Subject | None = None
        try:
            candidate = backend.realizer.candidate(recipe)
            seconds["apply"], mark = _lap(mark)
            subject = Subject(candidate, backend.data.first())
            scores = self.scoring.raced(candidate)
            if isinstance(scores, Rejection):
                seconds["evaluate"], mark = _lap(mark)
                return self._rejected(number, recipe, candidate, scores, seconds)
            verdict = self.yardstick.judge(candidate, scores, looks=number)
            seconds["evaluate"], mark = _lap(mark)
            measured = self._measure(subject)
            seconds["measure"], mark = _lap(mark)
            over = overruns(
                self.budgets,
                backend.space,
                {op: line.applied for op, line in candidate.ledger.items()},
                measured,
            )
            return Trial(
                number,
                recipe,
                metrics=verdict.metrics,
                runs=verdict.runs,
                passed=verdict.passed and not over,
                over=over,
                margin=verdict.margin,
                objectives=measured,
                ledger=candidate.ledger,
                seconds=seconds,
            )
        except StoreError:
            raise
        except Exception as error:
            return Trial(number, recipe, "failed", error=traceback_text(error), seconds=seconds)
        finally:
            if subject is not None:
                subject.close()

    def _rejected(
        self,
        number: int,
        recipe: Recipe,
        candidate: Candidate,
        race: Rejection,
        seconds: Mapping[str, float],
    ) -> Trial:
        """A trial whose evaluation was stopped: its score is an estimate, and its margin is below the goal whatever that says."""
        assert self.baseline is not None
        (name,) = self.baseline.metrics
        margin = min(self.criterion.judge({name: race.value}, self.baseline.metrics).margin, -1e-9)
        return Trial(
            number,
            recipe,
            "rejected",
            {name: race.value},
            margin=margin,
            ledger=candidate.ledger,
            seconds=seconds,
            evaluated=race.share,
        )

    def _measure(self, subject: Subject) -> dict[str, Measurement]:
        wanted = {**self.objectives, **self.checked}
        return {
            name: objective.measure(subject, self.reference) for name, objective in wanted.items()
        }


def _unsteady(measured: Mapping[str, Measurement]) -> str:
    """Return a warning if timings of the float model itself are spread so widely that they decide little; else ''."""
    for name, m in measured.items():
        if m.high - m.low > UNSTEADY * abs(m.value) > 0:
            return (
                f"{name} of the float model varied from {m.low:.3g} to {m.high:.3g} {m.unit} between rounds: this machine is busy, and "
                "differences smaller than that decide nothing; tune on an idle machine, or raise the objective's rounds"
            )
    return ""


def tell(progress: Sequence[Progress], text: str) -> None:
    """Pass a note on; where nobody listens it becomes a Python warning, so that it is never lost silently."""
    for p in progress:
        p.note(text)
    if not progress:
        warnings.warn(text, stacklevel=4)


def _told_error(text: str) -> str:
    """Return the last line of a traceback: the error itself."""
    return text.strip().splitlines()[-1] if text.strip() else "no error text"


def _without_numbers(error: str) -> str:
    """Return an error without what differs between two of the same: counts, times and addresses."""
    return re.sub(r"0x[0-9a-fA-F]+|\d+(\.\d+)?", "#", error)


def _lap(mark: float) -> tuple[float, float]:
    now = time.perf_counter()
    return now - mark, now


__all__ = ["Asks", "Backend", "Loop", "Progress", "tell"]
