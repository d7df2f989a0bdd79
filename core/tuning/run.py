"""The main job: from a model, a score and calibration data to the best quantized model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from octavo.core.contract.plugins import PluginHost
from octavo.core.opening.config import TuningConfig
from octavo.core.opening.opening import open_model, plugin_host
from octavo.core.results.loading import load_model
from octavo.core.results.result import Result
from octavo.core.scoring.executor import Executor

from .prepare import prepare
from .prepared import Run
from .progress import Progress
from .quantize import quantize_model


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
    progress: bool | None = None,
    holdout_fn: Callable[[Any], Any] | None = None,
    train_fn: Callable[[Any], Any] | None = None,
    sensitivities: str | Path | None = None,
    executor: Executor | str | Mapping[str, Any] | None = None,
    host: PluginHost | None = None,
    arrays: bool = False,
    **overrides: Any,
) -> Result:
    """Find the smallest, fastest quantized version of a model that is still good enough.

    Args:
        model: An nn.Module, a path or ModelProto of ONNX, a NumPy graph, a fitted scikit-learn MLP,
            or whatever a third-party backend claims. It is never changed.
        eval_fn: Scores a candidate: returns a float, a mapping of floats, or
            :class:`~octavo.Evaluation`. In a run on the model's own backend it is given the
            backend's model; in a run over several, arrays in, arrays out.
        calibration: An iterable of batches, a DataLoader, a CalibrationDataReader, an array, an
            .npz path, or a factory. A batch is what the model's call takes: a value, a tuple of
            values in call order, a mapping of values by name, or :class:`~octavo.Call`; values are
            trees of arrays and plain values. Labels behind the inputs are dropped and said; where a
            batch must be taken apart, :class:`~octavo.Batches` does.
        config: A :class:`TuningConfig`, a path (.toml, .yaml, .json) or a mapping.
        backends: Backends to search over; None for the model's own.
        storage: SQLite path or SQLAlchemy URL of the history; None makes a fresh file under
            ~/.cache/octavo.
        study: The run's name in that store.
        resume: Go on where a run on the same store stopped; False refuses a store that has trials.
        callbacks: Told how the run goes.
        progress: Whether the run shows itself, by a :class:`~octavo.ProgressDisplay`: True and
            False say so; None does on a terminal and in a notebook, unless callbacks are given.
        holdout_fn: Scores a model on data that ``eval_fn`` never uses; the winner's score on it is
            reported beside the search's.
        train_fn: Trains the backend's own model (an nn.Module whose layers see quantized weights
            and inputs) in place, and returns None or that model. It is called where no trial of the
            search reaches the goal, for the candidates that came closest, and runs where
            evaluations do. The setting ``recover`` says what else is learned and in which order;
            without it, this means ``recover = ["qat"]``.
        sensitivities: A file of sensitivities: read where it is there, and written at the end, one
            for each backend (``NAME.BACKEND.json``). Other budgets, goals and strategies on the
            same model and data start from it.
        executor: Where evaluations run: an object with ``submit``, or the setting (``inline``,
            ``process``); None takes the configured one.
        host: Plugins; None loads them as the configuration says.
        arrays: Hand the score function arrays in, arrays out in a run on one backend too.
        **overrides: Settings by keyword: ``strategy=``, ``tolerance=``, ``max_trials=``,
            ``timeout=``, ``seed=``, ...

    Returns:
        The best model with the evidence. The float model is a candidate too: it is the result when
        what reaches the goal is no gain, and the reason says so. When no trial reaches the goal it
        is the best one found, with ``goal_met`` False and the reason.

    Raises:
        OctavoError: Of one family, naming the thing at fault and the remedy, before long work
            starts.
    """
    with prepare(
        model,
        eval_fn,
        calibration,
        config,
        backends=backends,
        storage=storage,
        study=study,
        resume=resume,
        callbacks=callbacks,
        progress=progress,
        holdout_fn=holdout_fn,
        train_fn=train_fn,
        sensitivities=sensitivities,
        executor=executor,
        host=host,
        arrays=arrays,
        **overrides,
    ) as run:
        run.search()
        return run.finish()


def load(
    folder: str | Path,
    model: Any = None,
    *,
    backend: Mapping[str, Any] | None = None,
    arrays: bool | None = None,
) -> Any:
    """Load a saved result and return its runnable model: what its ``model`` was.

    Args:
        folder: What ``Result.save`` wrote.
        model: The float model (or a factory of one) where the files do not hold the architecture
            (torch).
        backend: Settings of its backend (``{"threads": 4}``, ``{"device": "cpu"}``) in place of
            those that it was made and scored with, which it is loaded with else.
        arrays: True for arrays in, arrays out whatever the backend, False for the backend's own
            model; None as it was made: arrays after a search over several backends.

    Raises:
        OctavoError: If the folder is no result, is damaged, or needs what is not installed.
    """
    return load_model(folder, model, backend=backend, arrays=arrays)


__all__ = [
    "Run",
    "autotune",
    "load",
    "open_model",
    "plugin_host",
    "prepare",
    "quantize_model",
]
