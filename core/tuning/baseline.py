"""The float model's own trial, against which every candidate is judged."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence

from octavo.core.contract.adapter import Batch, Candidate, Opened
from octavo.core.contract.objective import Subject
from octavo.core.errors import EvaluationError, said
from octavo.core.scoring.certifying import coarseness
from octavo.core.scoring.evaluation import Scores, sampling_by_metric
from octavo.core.scoring.noise import Noise
from octavo.core.scoring.racing import RaceConfig
from octavo.core.scoring.scoring import first_samples
from octavo.core.values.recipe import Recipe
from octavo.core.values.trial import Measurement, Trial

from .bench import Bench
from .fingerprint import another_count, another_score

UNSTEADY = 0.25  # spread of the float model's timing, as a share of it, from which on it is told


def measure_baseline(
    bench: Bench, noise_runs: int, race: RaceConfig | None = None
) -> Trial:
    """Score the float model, unless the history holds its score, and measure it.

    Args:
        bench: The run's; its ``scored`` is set.
        noise_runs: How often it is scored. Where single samples can be scored and a share of them
            comes out the same again, all of them would: then it is once.
        race: How evaluations may be stopped early; None scores every sample of every candidate.

    Raises:
        EvaluationError: If the score function fails on the float model, or changes it.
        ConfigError: If the criterion makes no sense at this score.
        StoreError: If the history was made with another score.
    """
    kept = next((t for t in bench.history.trials if t.number == 0), None)
    if kept is not None:
        bench.yardstick.restore(kept.metrics, Noise(kept.noise, kept.runs))
        _check_score(bench, kept, race)
        bench.scored = kept
        return kept
    began = time.perf_counter()
    scores = _score_unchanged(bench, noise_runs)
    _tell_of_the_score(bench, scores)
    if race is not None:
        bench.scoring.prepare_race(
            scores, bench.reference.candidate, bench.criterion, race
        )
    evaluated = time.perf_counter() - began
    measured = bench.measure(bench.reference)
    if unsteady := unsteadiness(measured):
        bench.tell(unsteady)
    seconds = {
        "evaluate": evaluated,
        "measure": time.perf_counter() - began - evaluated,
    }
    bench.scored = _recorded(bench, scores, measured, seconds)
    return bench.scored


def _score_unchanged(bench: Bench, noise_runs: int) -> Scores:
    """Score the float model as often as needed, and make sure that scoring leaves it as it is."""
    candidate = bench.reference.candidate
    before = candidate.fingerprint()
    bench.yardstick.measure(candidate, 1)
    scores = bench.yardstick.scores
    assert scores is not None
    once_is_enough = noise_runs == 1 or bench.clock.lacks_time_for(
        "a second look at the float model's score, to see whether it varies"
    )
    if not once_is_enough and not bench.scoring.repeats(candidate, scores):
        bench.yardstick.measure(candidate, noise_runs)
    if candidate.fingerprint() != before:
        raise EvaluationError(
            "the score function changes the model's parameters (training, in-place edits?); "
            "give one that only reads the model"
        )
    return scores


def _tell_of_the_score(bench: Bench, scores: Scores) -> None:
    """Tell that the score varies, or is too coarse for the goal."""
    if varies := bench.yardstick.warning():
        bench.tell(varies)
    goal = bench.criterion.allowed(bench.yardstick.baseline)
    if too_coarse := coarseness(scores, goal[0] if goal is not None else None):
        bench.tell(too_coarse)


def _recorded(
    bench: Bench,
    scores: Scores,
    measured: Mapping[str, Measurement],
    seconds: Mapping[str, float],
) -> Trial:
    """Return the float model's trial, which is in the history from now on."""
    recipe = bench.reference.candidate.recipe
    metrics, noise = bench.yardstick.baseline, bench.yardstick.noise
    trial = Trial(
        0,
        recipe,
        runs=noise.runs,
        noise=noise.deviation,
        metrics=metrics,
        passed=True,
        margin=bench.criterion.judge(metrics, metrics).margin,
        objectives=measured,
        seconds=seconds,
        sampling=sampling_by_metric(scores),
    )
    bench.history.begin(0, recipe)
    bench.history.finish(trial)
    bench.history.keep("samples", first_samples(scores))
    return trial


def _check_score(bench: Bench, before: Trial, race: RaceConfig | None) -> None:
    """Score the float model again as a run goes on: wholly, or some samples where those can be.

    Raises:
        StoreError: If another score comes out than the history holds: its trials were judged by
            another score.
        EvaluationError: If the score function fails on the float model.
    """
    candidate = bench.reference.candidate
    kept = bench.history.fact("samples")
    try:
        if bench.scoring.part_is_alike(candidate, kept, race):
            return
        scores = bench.yardstick.again(candidate)
        why = another_count(kept, scores) or another_score(
            before.metrics,
            scores.metrics,
            lambda: bench.scoring.full(candidate).metrics,
        )
    except EvaluationError:
        raise
    except Exception as error:
        raise EvaluationError(
            f"the score function fails on the float model: {said(error)}"
        ) from error
    if why:
        raise bench.history.refuse_resume(f"the float model's score is another: {why}")
    if race is not None:
        bench.scoring.prepare_race(scores, candidate, bench.criterion, race)


def unsteadiness(measured: Mapping[str, Measurement]) -> str:
    """Return a warning if timings of the float model itself are spread widely; else ''.

    Then they decide little.
    """
    for name, m in measured.items():
        if m.high - m.low > UNSTEADY * abs(m.value) > 0:
            return (
                f"{name} of the float model varied from {m.low:.3g} to {m.high:.3g} {m.unit} "
                "between rounds: this machine is busy, and differences smaller than that decide "
                "nothing; tune on an idle machine, or raise the objective's rounds"
            )
    return ""


def float_candidate(opened: Opened) -> Candidate:
    """Return the float model on a backend, under the name that the run has for this backend."""
    candidate = opened.session.reference()
    if candidate.recipe.backend == opened.name:
        return candidate
    return candidate.with_ledger(candidate.ledger, Recipe(backend=opened.name))


def measure_other_floats(
    bench: Bench, others: Sequence[tuple[Opened, Batch]], source: str
) -> None:
    """Score and measure the float model on each other backend, as candidates are.

    So what a runtime gains is told apart from what quantization does.

    Args:
        bench: The run's; its ``floats`` are filled.
        others: Backends beside the baseline's, each with a batch in its form.
        source: The baseline's backend.
    """
    if others:
        text = f"figures are shares of the float model's on {source}, the baseline"
        bench.tell(text, logging.INFO)
    for opened, batch in others:
        kept = bench.history.fact(f"float:{opened.name}")
        if kept is not None:
            bench.floats[opened.name] = Trial.from_json(kept)
            continue
        if bench.clock.lacks_time_for(f"the float model's score on {opened.name}"):
            return
        _measure_other_float(bench, opened, batch)


def _measure_other_float(bench: Bench, opened: Opened, batch: Batch) -> None:
    is_searched = bool(opened.capability.offers)
    which = "the float model" if is_searched else "the float model as given,"
    candidate = float_candidate(opened)
    subject = Subject(candidate, batch)
    began = time.perf_counter()
    try:
        scores = bench.scoring.full(subject.candidate)
        measured = bench.measure(subject)
    except Exception as error:
        bench.tell(f"{which} could not be scored on {opened.name}: {said(error)}")
        return
    finally:
        subject.close()
    verdict = bench.criterion.judge(bench.baseline.metrics, scores.metrics)
    trial = Trial(
        0,
        candidate.recipe,
        metrics=scores.metrics,
        passed=bench.criterion.judge(scores.metrics, bench.baseline.metrics).passed,
        objectives=measured,
        seconds={"evaluate": time.perf_counter() - began},
        sampling=sampling_by_metric(scores),
    )
    bench.floats[opened.name] = trial
    bench.history.put(f"float:{opened.name}", trial.to_json())
    figures = [_figures(scores.metrics)]
    figures += [f"{name} {_with_ratio(m)}" for name, m in measured.items()]
    searched = bench.baseline.recipe.backend
    bench.tell(
        f"{which} on {opened.name}: {', '.join(figures)}; "
        f"the baseline on {searched}: {_figures(bench.baseline.metrics)}",
        logging.INFO if is_searched else logging.WARNING,
    )
    if not is_searched and not verdict.passed:
        bench.tell(
            f"the export alone loses more than is tolerated: {verdict.reason}; "
            "the goal is kept against the export"
        )


def _with_ratio(measured: Measurement) -> str:
    ratio = measured.ratio
    share = "" if ratio is None else f" ({ratio:.3g} of the baseline)"
    return f"{measured.value:.4g} {measured.unit}{share}"


def _figures(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.6g}" for name, value in metrics.items())
