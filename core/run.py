"""The main job: from a model, a score and calibration data to the best quantized model."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from .adapter import Adapter, Batch, Candidate, Opened
from .config import TuningConfig
from .criteria.base import Criterion
from .data import CalibrationData, calibration_data, materialize
from .errors import ConfigError, EvaluationError, ModelError
from .executor import Executor, InlineExecutor, ProcessExecutor, terminate_as_interrupt
from .history import StudyHistory, default_storage
from .joint import JointStrategy
from .loop import Backend, Loop, Progress, choose, tell
from .objectives.base import Objective, Subject
from .parts import AdapterPart, PartConfig
from .plugins import PluginHost
from .presets import preset_recipe
from .realize import Realizer
from .recipe import Recipe
from .result import Quantized, Result, load_candidate, save_candidate
from .rules import build_space, build_spaces
from .scheme import FLOAT, canonical_json
from .space import TuningSpace
from .strategy import Problem, Strategy
from .trial import Trial


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
    executor: Executor | None = None,
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
        calibration: An iterable of batches, a DataLoader, a CalibrationDataReader, an array, an .npz path, or a factory.
        config: A :class:`TuningConfig`, a path (.toml, .yaml, .json) or a mapping.
        backends: Backends to search over; None for the model's own.
        storage: SQLite path or SQLAlchemy URL of the history; None makes a fresh file under ~/.cache/octavo.
        study: The run's name in that store.
        resume: Go on where a run on the same store stopped; False refuses a store that has trials.
        callbacks: Told how the run goes.
        executor: Where evaluations run; None takes the configured one.
        host: Plugins; None loads them as the configuration says.
        arrays: Hand the score function arrays in, arrays out in a run on one backend too.
        **overrides: Settings by keyword: ``strategy=``, ``tolerance=``, ``max_trials=``, ``timeout=``, ``seed=``, ...

    Returns:
        The best model with the evidence. When no trial reaches the goal it is the best one found, with ``goal_met``
        False and the reason.

    Raises:
        OctavoError: Of one family, naming the thing at fault and the remedy, before long work starts.
    """
    began = time.perf_counter()
    if backends is not None:
        overrides["backends"] = tuple(backends)
    settings = TuningConfig.read(config, **overrides)
    if not callable(eval_fn):
        raise EvaluationError(f"eval_fn must be callable: candidate -> score; got {type(eval_fn).__name__}")
    host = host or plugin_host(settings)
    criterion: Criterion = host.part("criteria", _kind(settings.criterion(host))).build(settings.criterion(host))
    objectives = _objectives(settings, host)
    strategy_settings = host.read("strategies", settings.strategy)
    with ExitStack() as stack:
        opened, data, native = _open_all(model, calibration, settings, host, stack)
        native = native and not arrays
        spaces = build_spaces(opened, settings.rules, transforms=settings.transforms, simulated=settings.simulated)
        source = opened[0]
        first = data[source.name]
        fingerprint = {
            "model": source.session.fingerprint(),
            "data": first.digest(),
            "space": canonical_json([spaces[o.name].digest for o in opened]),
            "goal": canonical_json([settings.accuracy, list(objectives)]),
        }
        directions = [_direction(settings), *("minimize" for _ in objectives)]
        history = StudyHistory(storage or default_storage(), name=study, fingerprint=fingerprint, directions=directions, resume=resume)
        stack.callback(history.close)
        realizers = {o.name: Realizer(o, spaces[o.name], host, non_finite=settings.non_finite) for o in opened}
        run_with = executor or stack.enter_context(_executor(settings))
        reference = Subject(source.session.reference(), first.first())
        stack.callback(reference.close)
        loop = Loop(
            {o.name: Backend(o, spaces[o.name], realizers[o.name], data[o.name]) for o in opened},
            reference,
            eval_fn,
            criterion,
            objectives,
            history,
            run_with,
            native=native,
            metric=str(settings.accuracy.get("metric") or "score"),
            progress=tuple(callbacks),
            notify=lambda trial: host.notify("octavo_trial_finished", trial=trial),
        )
        for name in opened:
            for note in (*name.notes, *spaces[name.name].notes, *data[name.name].notes):
                tell(callbacks, note)
        baseline = loop.measure_baseline(int(getattr(settings.criterion(host), "noise_runs", 1)))
        goal = criterion.describe(baseline.metrics)
        if not any(space.tunable for space in spaces.values()):
            reason = "nothing to quantize: no op of this model has a scheme to choose (see the ledger and the rules)"
            tell(callbacks, reason)
            return _result(reference.candidate, baseline, loop, settings, goal, native, reason=reason, opened=opened, began=began)
        interrupted, reason = False, ""
        with terminate_as_interrupt():
            try:
                for name in opened:
                    if spaces[name.name].tunable:
                        realizers[name.name].calibrate(data[name.name])
                strategy = _strategies(strategy_settings, settings, loop, objectives, host)
                reason = loop.run(
                    strategy,
                    max_trials=settings.max_trials,
                    timeout=settings.timeout,
                    stop_at_goal=settings.stop == "goal",
                    goal=goal,
                    space_size=sum(space.size for space in spaces.values()),
                )
            except KeyboardInterrupt:
                interrupted, reason = True, "interrupted; the best so far is kept"
        for p in callbacks:
            p.ended(reason)
        return _finish(loop, settings, goal, native, reason, interrupted, opened, began, model, host)


def _finish(
    loop: Loop,
    settings: TuningConfig,
    goal: str,
    native: bool,
    reason: str,
    interrupted: bool,
    opened: Sequence[Opened],
    began: float,
    model: Any,
    host: PluginHost,
) -> Result:
    """Choose the winner, save it, load it and score it again: what is reported is what is deployed."""
    trials = [t for t in loop.history.trials if t.number > 0]
    assert loop.baseline is not None
    refused: set[int] = set()
    while True:
        winner = choose([t for t in trials if t.number not in refused], tuple(loop.objectives))
        if winner is None:
            break
        candidate = loop.backends[winner.recipe.backend].realizer.candidate(winner.recipe)
        if not settings.confirm or interrupted:
            return _result(
                candidate,
                winner,
                loop,
                settings,
                goal,
                native,
                goal_met=True,
                reason=reason,
                opened=opened,
                began=began,
                interrupted=interrupted,
            )
        confirmed, problem = _confirm(candidate, loop, model, host, opened)
        if not problem:
            return _result(
                candidate,
                winner,
                loop,
                settings,
                goal,
                native,
                goal_met=True,
                reason=reason,
                opened=opened,
                began=began,
                confirmed=confirmed,
            )
        refused.add(winner.number)
        tell(loop.progress, f"trial {winner.number} passed, but not after saving and loading it again: {problem}; the next best is taken")
    done = [t for t in trials if t.state == "complete" and t.number not in refused]
    if not done:
        failed = next((t for t in reversed(trials) if t.error), None)
        why = f"no trial was completed; the last error: {failed.error.splitlines()[-1]}" if failed else "no trial was completed"
        return _result(
            loop.reference.candidate,
            loop.baseline,
            loop,
            settings,
            goal,
            native,
            reason=f"{why} ({reason})",
            opened=opened,
            began=began,
            interrupted=interrupted,
        )
    closest = max(done, key=lambda t: (t.margin, -t.number))
    candidate = loop.backends[closest.recipe.backend].realizer.candidate(closest.recipe)
    miss = loop.criterion.judge(closest.metrics, loop.baseline.metrics).reason
    return _result(
        candidate,
        closest,
        loop,
        settings,
        goal,
        native,
        reason=f"no trial reached the goal; the closest: {miss} ({reason})",
        opened=opened,
        began=began,
        interrupted=interrupted,
    )


def _confirm(candidate: Candidate, loop: Loop, model: Any, host: PluginHost, opened: Sequence[Opened]) -> tuple[Mapping[str, float], str]:
    assert loop.baseline is not None
    own = candidate.recipe.backend == opened[0].name
    with tempfile.TemporaryDirectory(prefix="octavo-") as folder:
        try:
            saved = save_candidate(candidate, Path(folder) / "result", {})
            loaded = load_candidate(saved, model if own else None, host=host)
            scores = loop.rescore(loaded)
        except Exception as error:
            return {}, f"{type(error).__name__}: {error}"
    verdict = loop.criterion.judge(scores.metrics, loop.baseline.metrics)
    return scores.metrics, "" if verdict.passed else verdict.reason


def _result(candidate: Candidate, best: Trial, loop: Loop, settings: TuningConfig, goal: str, native: bool, **facts: Any) -> Result:
    opened: Sequence[Opened] = facts.pop("opened")
    began: float = facts.pop("began")
    assert loop.baseline is not None
    return Result(
        candidate,
        native,
        tuple(n for o in opened for n in (*o.notes, *o.view.notes)),
        best=best,
        baseline=loop.baseline,
        trials=tuple(t for t in loop.history.trials if t.number > 0),
        config=settings,
        goal=goal,
        views={o.name: o.view for o in opened},
        storage=str(getattr(loop.history, "location", "")),
        seconds=time.perf_counter() - began,
        **facts,
    )


def quantize_model(
    model: Any,
    scheme: str | Recipe | TuningConfig | Mapping[str, Any] = "int8-static",
    calibration: Any = None,
    *,
    backend: str | Mapping[str, Any] | None = None,
    host: PluginHost | None = None,
) -> Quantized:
    """Quantize without a search.

    Args:
        model: As for :func:`autotune`.
        scheme: A named scheme (``int8-static``, ``int8-dynamic``, ``int4-weight-only``, ...), a :class:`Recipe`, or a
            configuration whose rules say what each op takes (its first choice).
        calibration: Needed where a scheme asks for ranges found in calibration.
        backend: The backend; None for the model's own.
        host: Plugins.

    Returns:
        The quantized model with its ledger.
    """
    settings = TuningConfig.read(scheme if isinstance(scheme, (TuningConfig, Mapping)) else None)
    if backend is not None:
        settings = TuningConfig.read(settings, backends=(backend,))
    host = host or plugin_host(settings)
    with ExitStack() as stack:
        opened, data, native = _open_all(model, calibration, settings, host, stack, need_data=False)
        target = opened[-1]
        space = build_space(target, settings.rules, transforms=settings.transforms, simulated=settings.simulated)
        if isinstance(scheme, Recipe):
            recipe = Recipe(scheme.schemes, scheme.transforms, target.name)
            space = _space_of(recipe, target)
        elif isinstance(scheme, str):
            recipe = preset_recipe(scheme, space, target)
            space = _space_of(recipe, target)
        else:
            recipe = space.recipe(space.first(), space.transforms[-1])
        realizer = Realizer(target, space, host, non_finite=settings.non_finite)
        if data or realizer.probes():
            realizer.calibrate(data[target.name] if data else ())
        candidate = realizer.candidate(recipe)
        return Quantized(candidate, native, (*target.notes, *target.view.notes))


def _space_of(recipe: Recipe, opened: Opened) -> TuningSpace:
    """A space that holds just one recipe, so that calibration observes what it needs and no more."""
    from .space import Unit

    units = tuple(
        Unit(op.name, op.type, (op.name,), (*([recipe[op.name]] if op.name in recipe.schemes else []), FLOAT), parameters=op.parameters)
        for op in opened.view.ops
    )
    return TuningSpace(opened.name, units, ((),) if not recipe.transforms else ((), recipe.transforms))


def load(folder: str | Path, model: Any = None) -> Any:
    """Load a saved result and return its runnable model.

    Args:
        folder: What ``Result.save`` wrote.
        model: The float model (or a factory of one) where the files do not hold the architecture (torch).

    Raises:
        OctavoError: If the folder is no result, is damaged, or needs what is not installed.
    """
    return load_candidate(folder, model).native


def plugin_host(settings: TuningConfig) -> PluginHost:
    """Load plugins as the configuration says."""
    return PluginHost(third_party=settings.plugins.autoload, allow=settings.plugins.allow, deny=settings.plugins.deny)


def find_adapter(model: Any, host: PluginHost) -> AdapterPart[Adapter]:
    """Return the card of the backend that a model belongs to.

    Raises:
        ModelError: If none claims it, or a path does not exist.
    """
    if isinstance(model, (str, Path)) and not Path(model).exists():
        raise ModelError(f"{model} does not exist")
    found = [card for card in host.adapters().values() if card.claims(model)]
    if not found:
        what = f"file {Path(model).name!r}" if isinstance(model, (str, Path)) else f"{type(model).__module__}.{type(model).__qualname__}"
        takes = "; ".join(f"{c.name}: {', '.join((*c.models, *c.suffixes))}" for c in host.adapters().values())
        raise ModelError(f"no backend takes a {what}. There are: {takes}. For another framework, install its plugin (octavo plugins)")
    return found[0]


def open_model(model: Any, host: PluginHost, *, backend: str | Mapping[str, Any] | None = None, example: Batch | None = None) -> Opened:
    """Open a model on its own backend.

    Args:
        model: As for :func:`autotune`.
        host: Plugins.
        backend: Settings of that backend, or its name.
        example: One batch, for shapes.
    """
    card = find_adapter(model, host)
    settings = host.read("adapters", backend) if backend is not None else None
    if settings is not None and _kind(settings) != card.name:
        raise ConfigError(f"backend {_kind(settings)!r} does not open a {type(model).__name__}; {card.name!r} does")
    return _opened(card, settings, model, example)


def _opened(card: AdapterPart[Adapter], settings: PartConfig | None, source: Any, example: Batch | None) -> Opened:
    session = card.build(settings).open(source, example)
    view = session.describe()
    return Opened(card.name, session, view, session.capability())


def _open_all(
    model: Any, calibration: Any, settings: TuningConfig, host: PluginHost, stack: ExitStack, *, need_data: bool = True
) -> tuple[list[Opened], dict[str, CalibrationData], bool]:
    """Open the model on every backend of the run: its own first, then the others from its export."""
    card = find_adapter(model, host)
    asked = (
        [host.read("adapters", b) for b in settings.backends] if settings.backends else [card.config.model_validate({"kind": card.name})]
    )
    names = [_kind(a) for a in asked]
    if len(set(names)) != len(names):
        raise ConfigError(f"a backend is named twice: {', '.join(names)}")
    raw = materialize(calibration) if calibration is not None else None
    example = raw.example() if raw is not None else None
    own = asked[names.index(card.name)] if card.name in names else None
    source = _opened(card, own, model, example)
    opened = [source]
    data: dict[str, CalibrationData] = {}
    if raw is not None or need_data:
        data[source.name] = calibration_data(raw, source.view.inputs)
        if not _same_framework(card, data[source.name].first()):
            data[source.name] = data[source.name].numpy()
    for config in asked:
        name = _kind(config)
        if name == source.name:
            continue
        opened.append(_exported(source, model, host.adapters()[name], config, stack))
        if data:
            data[name] = data[source.name].numpy().for_inputs(opened[-1].view.inputs)
    if card.name not in names:
        # The model's own backend is not searched: it only exports and gives the baseline.
        opened[0] = Opened(
            source.name,
            source.session,
            source.view,
            source.capability,
            ("the model's own backend is not searched; it is the float baseline",),
        )
        if need_data:
            opened = [_without_choices(opened[0]), *opened[1:]]
    return opened, data, len(opened) == 1


def _without_choices(opened: Opened) -> Opened:
    from dataclasses import replace

    return replace(opened, capability=replace(opened.capability, offers={}))


def _exported(source: Opened, model: Any, card: AdapterPart[Adapter], config: PartConfig, stack: ExitStack) -> Opened:
    """Open a model on a backend that is not its own: from its file if that is an interchange file, else from an export."""
    if isinstance(model, (str, Path)) and Path(model).suffix.lstrip(".") in card.accepts:
        return _opened(card, config, model, None)
    formats = [f for f in card.accepts if f"export:{f}" in source.capability.features]
    if not formats:
        raise ConfigError(
            f"{source.name!r} exports nothing that {card.name!r} opens ({', '.join(card.accepts) or 'no interchange format'}); "
            f"leave {card.name!r} out of backends"
        )
    path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="octavo-"))) / f"model.{formats[0]}"
    source.session.export(formats[0], path)
    return _opened(card, config, path, None)


def _same_framework(card: AdapterPart[Adapter], batch: Batch) -> bool:
    values = batch.values() if isinstance(batch, Mapping) else batch
    roots = {m.split(".")[0] for m in card.models}
    return all(type(v).__module__.split(".")[0] in roots for v in values)


def _strategies(
    strategy: PartConfig, settings: TuningConfig, loop: Loop, objectives: Mapping[str, Objective], host: PluginHost
) -> JointStrategy:
    from .sensitivity import SensitivityService

    built: dict[str, Strategy] = {}
    part = host.part("strategies", _kind(strategy))
    for name, backend in loop.backends.items():
        if not backend.space.tunable:
            continue
        problem = Problem(
            backend.space,
            tuple(objectives),
            settings.seed,
            SensitivityService(backend.opened, backend.realizer, tuple(_take(backend.data, 2))),
            settings.stop == "goal",
            dict(settings.budgets),
        )
        built[name] = part.build(strategy, problem)
    return JointStrategy(built)


def _take(data: CalibrationData, count: int) -> Iterator[Batch]:
    for index, batch in enumerate(data):
        if index == count:
            return
        yield batch


def _objectives(settings: TuningConfig, host: PluginHost) -> dict[str, Objective]:
    found: dict[str, Objective] = {}
    for raw in settings.objective.minimise:
        config = host.read("objectives", raw)
        objective: Objective = host.part("objectives", _kind(config)).build(config)
        objective.check()
        found[_kind(config)] = objective
    return found


@contextmanager
def _executor(settings: TuningConfig) -> Iterator[Executor]:
    chosen = (ProcessExecutor if settings.executor.kind == "process" else InlineExecutor)(settings.trial_timeout)
    try:
        yield chosen
    finally:
        chosen.close()


def _direction(settings: TuningConfig) -> str:
    return "minimize" if settings.accuracy.get("higher_is_better") is False else "maximize"


def _kind(config: PartConfig) -> str:
    return config.kind


__all__ = ["autotune", "find_adapter", "load", "open_model", "plugin_host", "quantize_model"]
