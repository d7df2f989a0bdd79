"""One trial: quantize (cached) -> evaluate -> measure -> judge -> record (durable)."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

from octavo.core.contract.objective import Subject
from octavo.core.errors import StoreError
from octavo.core.scoring.evaluation import sampling_by_metric
from octavo.core.scoring.executor import traceback_text
from octavo.core.scoring.racing import Rejection
from octavo.core.values.budgets import overruns
from octavo.core.values.ledger import Applied
from octavo.core.values.recipe import Recipe
from octavo.core.values.trial import Trial

from .bench import Bench, Judge


class _Laps:
    """Seconds of each step of a trial, from the end of the one before."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._mark = time.perf_counter()

    def end(self, step: str) -> None:
        now = time.perf_counter()
        self.seconds[step] = now - self._mark
        self._mark = now

    def divide(self, step: str, part: str, seconds: float) -> None:
        """Count a part of a step by itself.

        It may have been spent in an earlier run, whose model was kept.
        """
        self.seconds[step] = max(0.0, self.seconds[step] - seconds)
        self.seconds[part] = seconds


def evaluate(bench: Bench, recipe: Recipe) -> Trial:
    """Run one trial; when this returns it is in the history.

    Raises:
        StoreError: If the history cannot be written.
    """
    number = max((t.number for t in bench.history.trials), default=0) + 1
    for listener in bench.progress:
        listener.trying(number, recipe)
    try:
        fatal = bench.history.begin(number, recipe)
        if fatal:
            trial = Trial(number, recipe, "failed", error=fatal)
        else:
            trial = _tried(bench, number, recipe)
    except BaseException:
        # Ctrl-C, a signal or a lost store: the recipe is run again when the run goes on.
        with suppress(StoreError):
            bench.history.interrupt(number)
        raise
    bench.history.finish(trial)
    return trial


def _tried(bench: Bench, number: int, recipe: Recipe) -> Trial:
    """Return a trial; whatever goes wrong in it is recorded and the search goes on."""
    backend = bench.backends[recipe.backend]
    laps = _Laps()
    subject: Subject | None = None
    try:
        candidate = backend.realizer.candidate(recipe)
        laps.end("apply")
        if recipe.recovery:
            laps.divide("apply", "recover", backend.realizer.recovering.seconds)
        subject = Subject(candidate, backend.data.first())
        judge = bench.refining.get(recipe.digest)
        if judge is None:
            return _judged(bench, number, recipe, subject, laps)
        return _refined(bench, number, recipe, subject, laps, judge)
    except StoreError:
        raise
    except Exception as error:
        if recipe.recovery and not laps.seconds:
            laps.end("recover")
        told = traceback_text(error)
        return Trial(number, recipe, "failed", error=told, seconds=laps.seconds)
    finally:
        if subject is not None:
            subject.close()


def _refined(
    bench: Bench,
    number: int,
    recipe: Recipe,
    subject: Subject,
    laps: _Laps,
    judge: Judge,
) -> Trial:
    """Return the trial of a winner that learned further.

    It is scored only where held-back samples say that it came nearer to the float model.
    """
    distances = judge(subject.candidate)
    laps.end("held back")
    if distances["after"] < distances["before"]:
        trial = _judged(bench, number, recipe, subject, laps)
        return replace(trial, distances=distances)
    return Trial(
        number,
        recipe,
        "rejected",
        ledger=subject.candidate.ledger,
        seconds=laps.seconds,
        evaluated=0.0,
        distances=distances,
    )


def _judged(
    bench: Bench, number: int, recipe: Recipe, subject: Subject, laps: _Laps
) -> Trial:
    """Return the trial of a candidate: scored, measured and judged."""
    candidate = subject.candidate
    scores = bench.scoring.raced(candidate)
    if isinstance(scores, Rejection):
        laps.end("evaluate")
        return _rejected(bench, number, recipe, candidate.ledger, scores, laps.seconds)
    verdict = bench.yardstick.judge(candidate, scores, looks=number)
    laps.end("evaluate")
    measured = bench.measure(subject)
    laps.end("measure")
    space = bench.backends[recipe.backend].space
    applied = {op: line.applied for op, line in candidate.ledger.items()}
    over = overruns(bench.budgets, space, applied, measured)
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
        seconds=laps.seconds,
        sampling=sampling_by_metric(scores),
    )


def _rejected(
    bench: Bench,
    number: int,
    recipe: Recipe,
    ledger: Mapping[str, Applied],
    race: Rejection,
    seconds: Mapping[str, float],
) -> Trial:
    """Return a trial whose evaluation was stopped.

    Its score is an estimate, and its margin is below the goal whatever that says.
    """
    baseline = bench.baseline.metrics
    (name,) = baseline
    estimated = bench.criterion.judge({name: race.value}, baseline).margin
    return Trial(
        number,
        recipe,
        "rejected",
        {name: race.value},
        margin=min(estimated, -1e-9),
        ledger=ledger,
        seconds=seconds,
        evaluated=race.share,
    )
