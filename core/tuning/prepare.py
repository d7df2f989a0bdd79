"""From what a caller gives to a run that is ready to be searched."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from octavo.core.contract.objective import Subject
from octavo.core.contract.plugins import PluginHost
from octavo.core.errors import EvaluationError
from octavo.core.opening.config import TuningConfig
from octavo.core.opening.opening import plugin_host
from octavo.core.quantizing.recovering import TrainFn
from octavo.core.results.circumstances import source_of
from octavo.core.scoring.certifying import Certifying
from octavo.core.scoring.executor import Executor, InlineExecutor, ProcessExecutor
from octavo.core.scoring.scoring import Scoring
from octavo.core.scoring.yardstick import SECONDS, SHARE, Yardstick
from octavo.core.sensitivity.saved_scores import check_place
from octavo.core.sensitivity.service import SensitivityService
from octavo.core.storage.history import StudyHistory
from octavo.core.system.clock import Clock
from octavo.core.system.signals import terminate_as_interrupt
from octavo.core.system.textfiles import absolute
from octavo.core.values.budgets import MEASURED, describe
from octavo.core.values.trial import Trial

from .asked import Asked, Score, build_objectives, read_asked
from .baseline import float_candidate, measure_baseline, measure_other_floats
from .bench import Bench
from .ending.acceptance import Acceptance
from .ending.final_timing import LEAST_SECONDS, expected_seconds
from .ending.finish import Finish
from .ground import Ground, build_backends, open_ground, open_history
from .held_out import check_held_out, prepare_certificate
from .joint import build_strategy
from .loop import Limits
from .prepared import Plan, Run
from .progress import BASELINE, CONFIRMATION, FINAL_TIMING, OPENING, Progress
from .recovery.ladder import LadderPlan
from .recovery.preparing import prepare_recovery
from .recovery.training import read_recovery
from .sensitivities import keep_scores, sensitivity_services
from .telling.guarded_callbacks import guarded
from .telling.logged import Logged
from .telling.remarks import Remarks
from .telling.wanted import listeners


def prepare(
    model: Any,
    eval_fn: Score,
    calibration: Any = None,
    config: TuningConfig | str | Path | Mapping[str, Any] | None = None,
    *,
    backends: Sequence[str | Mapping[str, Any]] | None = None,
    storage: str | Path | None = None,
    study: str = "octavo",
    resume: bool = True,
    callbacks: Sequence[Progress] = (),
    progress: bool | None = None,
    holdout_fn: Score | None = None,
    train_fn: TrainFn | None = None,
    sensitivities: str | Path | None = None,
    executor: Executor | str | Mapping[str, Any] | None = None,
    host: PluginHost | None = None,
    arrays: bool = False,
    **overrides: Any,
) -> Run:
    """Open the model, score it, and return a run to be searched, by it or by its caller.

    The arguments are those of :func:`octavo.autotune`, which is this with a search and a finish.

    Returns:
        The run. It holds the history's lock, and lets SIGTERM and SIGHUP raise KeyboardInterrupt,
        until it is closed: use it in a ``with`` statement.

    Raises:
        OctavoError: Of one family, naming the thing at fault and the remedy.
    """
    clock = Clock()
    if backends is not None:
        is_one = isinstance(backends, (str, Mapping))
        overrides["backends"] = (backends,) if is_one else backends
    if executor is not None and not hasattr(executor, "submit"):
        overrides["executor"], executor = executor, None
    settings = TuningConfig.read(config, **overrides)
    settings = read_recovery(settings, train_fn)
    clock.limit = settings.timeout
    if not callable(eval_fn):
        raise EvaluationError(
            f"eval_fn must be callable: candidate -> score; got {type(eval_fn).__name__}"
        )
    showing = listeners(callbacks, progress)
    remarks = Remarks(showing)
    if sensitivities is not None:
        check_place(absolute(sensitivities, "a file of sensitivities"))
    with remarks.heard(), ExitStack() as stack:
        asked = read_asked(
            settings,
            host or plugin_host(settings),
            (eval_fn, holdout_fn),
            (Logged(), *showing),
            clock,
            remarks,
        )
        stack.enter_context(terminate_as_interrupt())
        stack.callback(asked.phases.close)
        with asked.phases.within(OPENING):
            ground = open_ground(asked, model, calibration, arrays, stack)
            history, ground = open_history(asked, ground, model, storage, study, resume)
            stack.callback(history.close)
            bench = _bench(asked, ground, history, executor, stack, train_fn)
            prepare_recovery(bench, asked, ground, model, executor, stack)
            _tell_notes(bench, ground)
            services = sensitivity_services(
                bench, sensitivities, settings.seed, settings.output_metric
            )
            bench.sensitivities = services
        with asked.phases.within(BASELINE):
            certifying = _score_float(asked, ground, bench)
        timing_again = expected_seconds(bench)
        # It ends there in all but long runs, however long a timing takes.
        asked.phases.expect(FINAL_TIMING, min(timing_again, LEAST_SECONDS))
        asked.phases.expect(CONFIRMATION, asked.clock.reserve - timing_again)
        acceptance = Acceptance(
            bench, ground.opened, settings.confirm, model, asked.host, certifying
        )
        if sensitivities is not None:
            for service in services.values():
                stack.callback(keep_scores, service, bench)
        plan = _plan(asked, ground, bench, services)
        finish = _finish(asked, ground, bench, acceptance, source_of(calibration))
        return Run(bench, plan, finish, stack.pop_all())
    # ExitStack may swallow errors, for all that mypy knows.
    raise AssertionError("unreachable")


def _bench(
    asked: Asked,
    ground: Ground,
    history: StudyHistory,
    executor: Any,
    stack: ExitStack,
    train_fn: TrainFn | None,
) -> Bench:
    """Set up what the steps of the run work with."""
    settings = asked.settings
    backends = build_backends(asked, ground, train_fn)
    for backend in backends.values():
        backend.realizer.check_weights()
    run_with: Executor = executor or stack.enter_context(_executor(settings))
    source = ground.source
    reference = Subject(float_candidate(source), ground.data[source.name].first())
    stack.callback(reference.close)
    metric = str(settings.accuracy.get("metric") or "score")
    scores = asked.scores
    scoring = Scoring(scores.search, run_with, ground.native, metric, scores.holdout)
    allowed = SECONDS if settings.timeout is None else SHARE * settings.timeout
    held_out = None
    if scores.holdout is not None:
        what = "the holdout's score"
        held_out = Yardstick(scoring.held_out_scores, asked.criterion, allowed, what)
    # What budgets limit is measured, whether or not it is minimised.
    beside = [
        n for n in settings.budgets if n in MEASURED and n not in asked.objectives
    ]
    return Bench(
        backends,
        reference,
        scoring,
        asked.criterion,
        Yardstick(scoring.full, asked.criterion, allowed),
        held_out,
        asked.objectives,
        history,
        progress=asked.listeners,
        phases=asked.phases,
        remarks=asked.remarks,
        notify=_hook(asked.host, asked.remarks),
        budgets={str(name): limit for name, limit in settings.budgets.items()},
        checked=build_objectives(beside, asked.host),
        clock=asked.clock,
    )


def _hook(host: PluginHost, remarks: Remarks) -> Callable[[Trial], None]:
    """Return the plugins' hook, which tells what it raises."""
    return guarded(
        lambda trial: host.notify("octavo_trial_finished", trial=trial),
        remarks.tell,
    )


def _tell_notes(bench: Bench, ground: Ground) -> None:
    """Tell what was noticed of the model, the space, the data and the history."""
    for opened in ground.opened:
        space, data = ground.spaces[opened.name], ground.data[opened.name]
        for note in (*opened.notes, *space.notes):
            bench.tell(note)
        for left_out in data.notes:
            # Whoever gives the batches can say what is what in them.
            bench.remarks.advise(left_out)
    for note in bench.history.notes:
        bench.tell(note)
    for note in _left_out(bench):
        bench.tell(note)


def _left_out(bench: Bench) -> tuple[str, ...]:
    return tuple(
        note for backend in bench.backends.values() for note in backend.left_out
    )


def _score_float(asked: Asked, ground: Ground, bench: Bench) -> Certifying | None:
    """Score the float model: on the search's data, on what is held out, and as it was given.

    Returns:
        What certifies winners; None where that is not asked for, or there was no time for it.
    """
    settings, clock = asked.settings, asked.clock
    noise_runs = int(getattr(asked.criterion.config, "noise_runs", 1))
    measure_baseline(bench, noise_runs, settings.racing)
    certifying = None
    lacks_time = bench.held_out is not None and clock.lacks_time_for(
        "the float model's score on the held-out data"
    )
    if not lacks_time:
        is_optional = asked.scores.share != settings.holdout
        certifying = prepare_certificate(bench, optional=is_optional)
        check_held_out(bench)
    source = ground.source
    others = [o for o in ground.opened if o is not source]
    batches = [ground.data[other.name].first() for other in others]
    measure_other_floats(bench, list(zip(others, batches, strict=True)), source.name)
    confirming = (bench.yardstick if settings.confirm else None, bench.held_out)
    confirmation = sum(y.confirmation_seconds for y in confirming if y is not None)
    clock.reserve = confirmation + expected_seconds(bench)
    return certifying


def _plan(
    asked: Asked,
    ground: Ground,
    bench: Bench,
    services: Mapping[str, SensitivityService],
) -> Plan:
    settings = asked.settings
    return Plan(
        partial(build_strategy, bench, settings, asked.strategy, asked.host, services),
        Limits(settings.max_trials, settings.stop == "goal"),
        settings.seed,
        ground.guarded.name,
        LadderPlan.of(settings),
    )


def _finish(
    asked: Asked, ground: Ground, bench: Bench, acceptance: Acceptance, source: str
) -> Finish:
    goals = (asked.criterion.describe(bench.baseline.metrics), describe(bench.budgets))
    goal = ", ".join(filter(None, goals))
    return Finish(
        bench,
        acceptance,
        asked.settings,
        goal,
        ground.native,
        _left_out(bench),
        source,
        asked.scores.share,
    )


@contextmanager
def _executor(settings: TuningConfig) -> Iterator[Executor]:
    in_child = settings.executor.kind == "process"
    chosen = (ProcessExecutor if in_child else InlineExecutor)(settings.trial_timeout)
    try:
        yield chosen
    finally:
        chosen.close()


__all__ = ["prepare"]
