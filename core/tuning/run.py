"""The main job: from a model, a score and calibration data to the best quantized model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from octavo.core.calibration.data import CalibrationData
from octavo.core.contract.adapter import Batch
from octavo.core.contract.criterion import Criterion
from octavo.core.contract.objective import Objective, Subject
from octavo.core.contract.parts import PartConfig
from octavo.core.contract.plugins import PluginHost
from octavo.core.contract.strategy import Problem, Strategy, SuggestsTransforms
from octavo.core.errors import (
    ConfigError,
    EvaluationError,
    ModelError,
    StoreError,
    raised_as,
    shown,
)
from octavo.core.quantizing.realize import Realizer
from octavo.core.scoring.executor import Executor, InlineExecutor, ProcessExecutor
from octavo.core.scoring.held_out import CERTIFIED, split_samples
from octavo.core.scoring.scoring import Scoring
from octavo.core.scoring.yardstick import SECONDS, SHARE, Yardstick
from octavo.core.sensitivity.service import SensitivityService, check_place
from octavo.core.sensitivity.shared import Scores, SharedSensitivity, lend_traces
from octavo.core.storage.differences import explain
from octavo.core.storage.history import StudyHistory, default_storage
from octavo.core.system.clock import Clock
from octavo.core.system.signals import OutOfTime, deadline, terminate_as_interrupt
from octavo.core.system.textfiles import absolute
from octavo.core.values.budgets import MEASURED, describe, float_keeps
from octavo.core.values.json_form import canonical_json
from octavo.core.values.space import TuningSpace

from .config import PartTable, TuningConfig
from .fingerprint import fingerprint, shaping
from .finish import Finish
from .guarded_callbacks import Guarded, guarded
from .joint import JointStrategy
from .loop import Backend, Loop, Progress, tell
from .opening import open_all, open_model, plugin_host
from .quantize import quantize_model
from .result import Result, load_candidate
from .rules import build_spaces
from .speeds import is_fast_first, worth_trying


def autotune(
    model: Any,
    eval_fn: Callable[[Any], Any],
    calibration: Any = None,
    config: TuningConfig | str | Path | Mapping[str, Any] | None = None,
    *,
    backends: Sequence[str | Mapping[str, Any]] | None = None,
    storage: str | Path | None = None,
    study: str = "octavo",
    resume: bool = True,
    callbacks: Sequence[Progress] = (),
    holdout_fn: Callable[[Any], Any] | None = None,
    sensitivities: str | Path | None = None,
    executor: Executor | str | Mapping[str, Any] | None = None,
    host: PluginHost | None = None,
    arrays: bool = False,
    **overrides: Any,
) -> Result:
    """Find the smallest, fastest quantized version of a model that is still good enough.

    Args:
        model: An nn.Module, a path or ModelProto of ONNX, a NumPy graph, a fitted scikit-learn MLP, or whatever a
            third-party backend claims. It is never changed.
        eval_fn: Scores a candidate: returns a float, a mapping of floats, or :class:`~octavo.Evaluation`. In a run on the
            model's own backend it is given the backend's model; in a run over several, arrays in, arrays out.
        calibration: An iterable of batches, a DataLoader, a CalibrationDataReader, an array, an .npz path, or a factory. A batch is
            what the model's call takes: a value, a tuple of values in call order, a mapping of values by name, or
            :class:`~octavo.Call`; values are trees of arrays and plain values. Labels behind the inputs are dropped and said;
            where a batch must be taken apart, :class:`~octavo.Batches` does.
        config: A :class:`TuningConfig`, a path (.toml, .yaml, .json) or a mapping.
        backends: Backends to search over; None for the model's own.
        storage: SQLite path or SQLAlchemy URL of the history; None makes a fresh file under ~/.cache/octavo.
        study: The run's name in that store.
        resume: Go on where a run on the same store stopped; False refuses a store that has trials.
        callbacks: Told how the run goes.
        holdout_fn: Scores a model on data that ``eval_fn`` never uses; the winner's score on it is reported beside the search's.
        sensitivities: A file of sensitivities: read where it is there, and written at the end, one for each backend
            (``NAME.BACKEND.json``). Other budgets, goals and strategies on the same model and data start from it.
        executor: Where evaluations run: an object with ``submit``, or the setting (``inline``, ``process``); None takes the
            configured one.
        host: Plugins; None loads them as the configuration says.
        arrays: Hand the score function arrays in, arrays out in a run on one backend too.
        **overrides: Settings by keyword: ``strategy=``, ``tolerance=``, ``max_trials=``, ``timeout=``, ``seed=``, ...

    Returns:
        The best model with the evidence. The float model is a candidate too: it is the result when what reaches the goal is
        no gain, and the reason says so. When no trial reaches the goal it is the best one found, with ``goal_met`` False
        and the reason.

    Raises:
        OctavoError: Of one family, naming the thing at fault and the remedy, before long work starts.
    """
    clock = Clock()
    if backends is not None:
        overrides["backends"] = (backends,) if isinstance(backends, (str, Mapping)) else backends
    if executor is not None and not hasattr(executor, "submit"):
        overrides["executor"], executor = executor, None
    settings = TuningConfig.read(config, **overrides)
    clock.limit = settings.timeout
    if not callable(eval_fn):
        raise EvaluationError(
            f"eval_fn must be callable: candidate -> score; got {type(eval_fn).__name__}"
        )
    search_fn: Callable[[Any], Any] = eval_fn
    callbacks = _listeners(callbacks)
    host = host or plugin_host(settings)
    criterion: Criterion = host.part("criteria", settings.criterion(host).kind).build(
        settings.criterion(host)
    )
    confidence = getattr(criterion.config, "confidence", None)
    share = settings.holdout
    if confidence is not None and not share and holdout_fn is None:
        share = CERTIFIED
    if share:
        search_fn, holdout_fn = split_samples(
            eval_fn, share, settings.seed, required=bool(settings.holdout)
        )
    objectives = _objectives(settings.objective.minimise, host)
    strategy_settings = host.read("strategies", settings.strategy)
    if sensitivities is not None:
        check_place(absolute(sensitivities, "a file of sensitivities"))
    with ExitStack() as stack:
        stack.enter_context(terminate_as_interrupt())
        opened, data, native = open_all(model, calibration, settings, host, stack)
        native = native and not arrays
        suggested = (
            strategy_settings.suggested if isinstance(strategy_settings, SuggestsTransforms) else {}
        )
        spaces = build_spaces(
            opened,
            settings.rules,
            transforms=settings.transforms or (),
            suggested=suggested if settings.transforms is None else {},
            simulated=settings.simulated,
        )
        # A search over one foreign backend is measured against the float model there: same threads, device and runtime.
        source = opened[1] if len(opened) == 2 and not opened[0].capability.offers else opened[0]
        first = data[source.name]
        prints = fingerprint(
            settings,
            opened,
            spaces,
            objectives,
            search_fn,
            data=first.digest(),
            share=share,
            holdout_fn=holdout_fn is not None,
        )
        directions = [
            _direction(settings),
            *("minimize" if o.lower_is_better else "maximize" for o in objectives.values()),
        ]
        history = StudyHistory(
            storage or default_storage(),
            name=study,
            fingerprint=prints,
            settings=shaping(settings),
            directions=directions,
            resume=resume,
        )
        stack.callback(history.close)
        realizers = {
            o.name: Realizer(
                o,
                spaces[o.name],
                host,
                non_finite=settings.non_finite,
                gram_bytes=settings.gram_bytes,
            )
            for o in opened
        }
        for realizer in realizers.values():
            realizer.check_weights()
        run_with: Any = executor or stack.enter_context(_executor(settings))
        reference = Subject(source.session.reference(), first.first())
        stack.callback(reference.close)
        metric = str(settings.accuracy.get("metric") or "score")
        scoring = Scoring(search_fn, run_with, native, metric, holdout_fn)
        allowed = SECONDS if settings.timeout is None else SHARE * settings.timeout
        held_out = Yardstick(scoring.held_out_scores, criterion, allowed, "the holdout's score")
        loop = Loop(
            {o.name: Backend(o, spaces[o.name], realizers[o.name], data[o.name]) for o in opened},
            reference,
            scoring,
            criterion,
            Yardstick(scoring.full, criterion, allowed),
            held_out if holdout_fn is not None else None,
            objectives,
            history,
            progress=callbacks,
            notify=guarded(
                lambda trial: host.notify("octavo_trial_finished", trial=trial),
                lambda text: tell(callbacks, text),
            ),
            budgets={str(name): limit for name, limit in settings.budgets.items()},
            clock=clock,
            checked=_objectives(
                [n for n in settings.budgets if n in MEASURED and n not in objectives], host
            ),
        )
        for name in opened:
            for note in (*name.notes, *spaces[name.name].notes, *data[name.name].notes):
                tell(callbacks, note)
        for note in history.notes:
            tell(callbacks, note)
        services = _services(loop, sensitivities, settings.seed)
        left_out = tuple(note for o in opened for note in _searched(loop, o.name, settings)[1])
        for note in left_out:
            tell(callbacks, note)
        baseline = loop.measure_baseline(
            int(getattr(settings.criterion(host), "noise_runs", 1)), settings.racing
        )
        certified = None
        if loop.held_out is None or not clock.lacks_time_for(
            "the float model's score on the held-out data"
        ):
            certified = loop.prepare_certificate(optional=share != settings.holdout)
            loop.check_held_out()
        if source is not opened[0] and not clock.lacks_time_for("the score of the model as given"):
            loop.compare_with_given(opened[0], data[opened[0].name].first())
        clock.reserve = sum(
            y.confirmation_seconds
            for y in (loop.yardstick if settings.confirm else None, loop.held_out)
            if y
        )
        goal = ", ".join(
            filter(None, (criterion.describe(baseline.metrics), describe(loop.budgets)))
        )
        finish = Finish(
            loop,
            settings,
            goal,
            native,
            tuple(opened),
            clock.began,
            model,
            host,
            certified,
            left_out,
        )
        if not any(space.tunable for space in spaces.values()):
            reason = "nothing to quantize: no op of this model has a scheme to choose (see the ledger and the rules)"
            tell(callbacks, reason)
            return finish.result(reference.candidate, baseline, reason=reason)
        if sensitivities is not None:
            for service in services.values():
                stack.callback(_keep, service, callbacks)
        if not any(_searched(loop, o.name, settings)[0].tunable for o in opened):
            reason = f"the float model is kept: {'; '.join(left_out)}"
            return finish.result(
                reference.candidate, baseline, reason=reason, goal_met=float_keeps(loop.budgets)
            )
        reason, accepted, calibrated = "", None, False
        try:
            for name in opened:
                if spaces[name.name].tunable:
                    with (
                        deadline(clock.until()),
                        raised_as(
                            ModelError, f"{name.name} cannot run this model on the calibration data"
                        ),
                    ):
                        realizers[name.name].calibrate(data[name.name])
            calibrated = True
            _check_batches(history, data)
            own = next((o for o in opened if spaces[o.name].tunable), source)
            loop.check_direction(realizers[own.name], settings.seed)
            refused = True
            # A refused winner is told to a strategy made anew, with all the rest: the search goes on where it was, but for that.
            while accepted is None and refused:
                reason = loop.run(
                    _strategies(strategy_settings, settings, loop, objectives, host, services),
                    max_trials=settings.max_trials,
                    stop_at_goal=settings.stop == "goal",
                    goal=goal,
                    space_size=sum(space.size for space in spaces.values()),
                )
                refused = loop.best() is not None
                accepted = finish.accept()
        except OutOfTime:
            reason = clock.told(f"{clock} before calibration was done")
        except KeyboardInterrupt:
            reason = (
                "interrupted; the best so far is kept"
                if calibrated
                else "interrupted before calibration was done"
            )
            _end(callbacks, reason)
            return (
                finish.interrupted(reason)
                if calibrated
                else finish.unready(reason, interrupted=True)
            )
        if not calibrated:
            _end(callbacks, reason)
            return finish.unready(reason)
        reason = clock.told(reason)
        _end(callbacks, reason)
        return finish.unhelped(reason) if accepted is None else finish.reached(accepted, reason)


def _listeners(callbacks: Any) -> tuple[Progress, ...]:
    """Return the caller's callbacks, each guarded.

    Raises:
        ConfigError: If one is no :class:`Progress`.
    """
    alone = isinstance(callbacks, Progress) or not isinstance(callbacks, Iterable)
    given = (callbacks,) if alone else tuple(callbacks)
    if not all(hasattr(p, "finished") for p in given):
        raise ConfigError(
            f"callbacks is a sequence of octavo.Progress objects (got {shown(callbacks)})"
        )
    return tuple(Guarded(p) for p in given)


def _end(callbacks: Sequence[Progress], reason: str) -> None:
    for p in callbacks:
        p.ended(reason)


def _check_batches(history: StudyHistory, data: Mapping[str, CalibrationData]) -> None:
    """Compare what calibration read of factories, all of it, with what the history's run read."""
    read = {name: batches.read for name, batches in data.items() if batches.read}
    before = history.keep("batches", read) if read else {}
    if why := explain(
        {"batches": canonical_json(before)}, {"batches": canonical_json({**before, **read})}, {}, {}
    ):
        raise history.refuse_resume(why)


def _keep(service: SensitivityService, callbacks: Sequence[Progress]) -> None:
    """Write the scores; that they cannot be written costs the next run its start, and not this one its result."""
    try:
        service.save()
    except StoreError as error:
        tell(callbacks, f"the sensitivities are not kept: {error}")


def load(folder: str | Path, model: Any = None, *, backend: Mapping[str, Any] | None = None) -> Any:
    """Load a saved result and return its runnable model.

    Args:
        folder: What ``Result.save`` wrote.
        model: The float model (or a factory of one) where the files do not hold the architecture (torch).
        backend: Settings of its backend (``{"threads": 4}``, ``{"device": "cpu"}``) in place of those that it was made
            and scored with, which it is loaded with else.

    Raises:
        OctavoError: If the folder is no result, is damaged, or needs what is not installed.
    """
    return load_candidate(folder, model, backend=backend).native


def _strategies(
    strategy: PartConfig,
    settings: TuningConfig,
    loop: Loop,
    objectives: Mapping[str, Objective],
    host: PluginHost,
    services: Mapping[str, SensitivityService],
) -> JointStrategy:
    part = host.part("strategies", strategy.kind)
    scores: Scores = {}
    built: dict[str, Strategy] = {}
    for name, service in services.items():
        space = _searched(loop, name, settings)[0]
        problem = Problem(
            space,
            tuple(objectives),
            settings.seed,
            SharedSensitivity(service, space, scores) if len(services) > 1 else service,
            settings.stop == "goal",
            loop.budgets,
            max(1, settings.max_trials // len(services)),
        )
        built[name] = part.build(strategy, problem)
    return JointStrategy(built)


def _searched(loop: Loop, name: str, settings: TuningConfig) -> tuple[TuningSpace, tuple[str, ...]]:
    """Return the space that a strategy sees, and what was left out of the backend's own."""
    backend = loop.backends[name]
    if not is_fast_first(loop.objectives):
        return backend.space, ()
    return worth_trying(backend.opened, backend.space, settings.rules)


def _services(loop: Loop, path: str | Path | None, seed: int) -> dict[str, SensitivityService]:
    """One sensitivity service for each backend that has a choice; ``path`` holds the scores of earlier runs."""
    found = {}
    for name, backend in loop.backends.items():
        if backend.space.tunable:
            kept = Path(path).with_suffix(f".{name}.json") if path is not None else None
            found[name] = SensitivityService(
                backend.opened,
                backend.realizer,
                tuple(_take(backend.data, 2)),
                kept,
                note=lambda text: tell(loop.progress, text),
                seed=seed,
            )
    lend_traces(tuple(found.values()))
    return found


def _take(data: CalibrationData, count: int) -> Iterator[Batch]:
    for index, batch in enumerate(data):
        if index == count:
            return
        yield batch


def _objectives(wanted: Sequence[PartTable], host: PluginHost) -> dict[str, Objective]:
    found: dict[str, Objective] = {}
    for raw in wanted:
        config = host.read("objectives", raw)
        objective: Objective = host.part("objectives", config.kind).build(config)
        objective.check()
        found[config.kind] = objective
    return found


@contextmanager
def _executor(settings: TuningConfig) -> Iterator[Executor]:
    chosen = (ProcessExecutor if settings.executor.kind == "process" else InlineExecutor)(
        settings.trial_timeout
    )
    try:
        yield chosen
    finally:
        chosen.close()


def _direction(settings: TuningConfig) -> str:
    return "minimize" if settings.accuracy.get("higher_is_better") is False else "maximize"


__all__ = ["autotune", "load", "open_model", "plugin_host", "quantize_model"]
