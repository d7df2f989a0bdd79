"""``octavo tune``: the main job from the command line."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from octavo.core.errors import ConfigError, DataError, MissingFramework
from octavo.core.opening.config import TuningConfig
from octavo.core.opening.opening import open_model, plugin_host
from octavo.core.report import report_data, write
from octavo.core.results.result import Result, check_target, read_manifest
from octavo.core.scoring.evaluation import ArrayModel
from octavo.core.system.signals import deferred_interrupts, terminate_as_interrupt
from octavo.core.tuning.run import autotune

from .console import out, say, warn
from .data import Samples, calibration_source, read_samples, split
from .metrics import METRICS, FileScore, metric
from .models import default_folder, named_object, source
from .progress import Show
from .summary import summary

NOT_REACHED = 3
INTERRUPTED = 130


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("tune")(tune)


def tune(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            help="A model file (.onnx, .npz), or module:name of a Python object or of a function "
            "that makes one."
        ),
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            help="Samples: an .npz or a folder of .npy, one array per model input and one of "
            "labels."
        ),
    ] = None,
    metric_name: Annotated[
        str | None,
        typer.Option(
            "--metric",
            help=f"Score on --data: {', '.join(METRICS)}; or a name for --evaluate's.",
        ),
    ] = None,
    evaluate: Annotated[
        str | None,
        typer.Option(
            help="module:function that scores a candidate, instead of a built-in metric."
        ),
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            help="Calibration samples (.npz, folder, or module:name); default: a part of --data."
        ),
    ] = None,
    labels: Annotated[
        str | None, typer.Option(help="Name of the array of labels in --data.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            "-c",
            help="Configuration (.toml, .yaml, .json); options override it.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Folder for the result; default: MODEL-quantized."
        ),
    ] = None,
    backend: Annotated[
        list[str] | None,
        typer.Option(
            "--backend", "-b", help="Search over this backend; may be repeated."
        ),
    ] = None,
    strategy: Annotated[
        str | None, typer.Option(help="Search strategy; see octavo plugins.")
    ] = None,
    tolerance: Annotated[
        float | None, typer.Option(help="Tolerated loss of the score; default 0.01.")
    ] = None,
    mode: Annotated[
        Literal["relative", "absolute"] | None,
        typer.Option(help="Of the float score, or in its own units."),
    ] = None,
    lower_is_better: Annotated[
        bool | None,
        typer.Option(
            "--lower-is-better/--higher-is-better",
            help="Whether the score of --evaluate is a loss; asked for where its name does not "
            "say.",
            show_default=False,
        ),
    ] = None,
    minimise: Annotated[
        list[str] | None,
        typer.Option(help="What to minimise, most important first; may be repeated."),
    ] = None,
    max_trials: Annotated[
        int | None, typer.Option(help="Evaluations after the float model's.")
    ] = None,
    timeout: Annotated[
        str | None, typer.Option(help="Limit of the search: 90s, 10min, 2h.")
    ] = None,
    stop: Annotated[
        Literal["goal", "budget"] | None,
        typer.Option(help="End at the first recipe that passes, or use the budget."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="The only source of randomness.")
    ] = None,
    batch_size: Annotated[
        int,
        typer.Option(
            min=1, help="Samples per call, in calibration, scoring and timing."
        ),
    ] = 32,
    calibration_size: Annotated[
        int, typer.Option(min=1, help="Samples of --data set aside for calibration.")
    ] = 128,
    holdout: Annotated[
        float | None,
        typer.Option(
            help="Share of the scored samples kept from the search, to confirm the winner on."
        ),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(help="History file or database URL; default: beside the output."),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on where a run on the same history stopped."),
    ] = False,
    report: Annotated[
        bool,
        typer.Option(
            "--report/--no-report", help="Write report.html into the output folder."
        ),
    ] = True,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print only the tables at the end.")
    ] = False,
) -> None:
    """Find the smallest, fastest quantized version of MODEL that is still good enough."""
    settings = {
        "strategy": strategy,
        "tolerance": tolerance,
        "mode": mode,
        "minimise": minimise,
        "max_trials": max_trials,
        "timeout": timeout,
        "stop": stop,
        "seed": seed,
        "backends": tuple(backend) if backend else None,
        "metric": metric_name,
        "holdout": holdout,
        "higher_is_better": None if lower_is_better is None else not lower_is_better,
    }
    given = {name: value for name, value in settings.items() if value is not None}
    configured = TuningConfig.read(config, **given)
    opened = source(model)
    target = check_target(output or default_folder(model, opened, "quantized"))
    score, batches, configured = _evaluation(
        opened,
        configured,
        data,
        evaluate,
        calibration,
        labels,
        batch_size,
        calibration_size,
    )
    # Signals end the run as a whole in peace: what was found is saved before the process ends.
    with terminate_as_interrupt():
        with Show(quiet) as show:
            result = autotune(
                opened,
                score,
                batches,
                configured,
                storage=storage or f"{target}.db",
                resume=resume,
                callbacks=(show,),
                arrays=isinstance(score, FileScore),
            )
        result = replace(
            result, command=shlex.join(["octavo", *(context.obj or ["tune", model])])
        )
        with deferred_interrupts():
            folder = result.save(target)
        _hand_over(result, folder, report, Path(model).name)
    if result.interrupted:
        raise typer.Exit(INTERRUPTED)
    if not result.goal_met:
        raise typer.Exit(NOT_REACHED)


def _evaluation(
    model: Any,
    settings: TuningConfig,
    data: Path | None,
    evaluate: str | None,
    calibration: str | None,
    labels: str | None,
    batch_size: int,
    calibration_size: int,
) -> tuple[Callable[[Any], Any], Iterable[Any], TuningConfig]:
    """Return the score function, the calibration batches, and the settings with the score's name
    and direction."""
    samples = read_samples(data, labels) if data is not None else None
    if calibration is not None:
        batches = calibration_source(calibration, "--calibration", batch_size)
    elif samples is not None:
        kept, samples = split(samples, calibration_size)
        batches = list(kept.batches(batch_size))
        say(
            f"{data}: {len(kept)} samples calibrate, {len(samples)} others score (--calibration "
            "gives calibration data of its own)"
        )
    else:
        raise DataError(
            "calibration data is missing: give --data, or --calibration beside --evaluate"
        )
    if evaluate is not None:
        score = named_object(evaluate, "--evaluate")
        if not callable(score):
            raise ConfigError(
                f"--evaluate {evaluate!r} is a {type(score).__name__}, not a function: candidate "
                "-> score"
            )
        return score, batches, settings
    if samples is None:
        raise ConfigError(
            "say how a candidate is scored: --data with --metric, or --evaluate module:function"
        )
    return (
        _file_score(model, settings, samples, batch_size),
        batches,
        _with_direction(settings, samples),
    )


def _name(settings: TuningConfig, samples: Samples) -> str:
    usual = "accuracy" if samples.labels is not None else "cosine"
    return str(settings.accuracy.get("metric") or usual)


def _with_direction(settings: TuningConfig, samples: Samples) -> TuningConfig:
    name = _name(settings, samples)
    return TuningConfig.read(
        settings, metric=name, higher_is_better=metric(name).higher_is_better
    )


def _file_score(
    model: Any, settings: TuningConfig, samples: Samples, batch_size: int
) -> FileScore:
    name = _name(settings, samples)
    reference = None
    compares_with_float = samples.labels is None or name == "agreement"
    if compares_with_float and not metric(name).needs_labels:
        opened = open_model(
            model, plugin_host(settings), example=next(samples.batches(batch_size))
        )
        reference = ArrayModel(opened.session.reference())
    return FileScore(name, samples, batch_size, reference)


def _hand_over(result: Result, folder: Path, report: bool, title: str) -> None:
    """Print the tables, write the report and say where everything is."""
    data = report_data(read_manifest(folder), title)
    console = out()
    console.print(summary(data))
    console.print(f"model: {folder}", soft_wrap=True)
    if report:
        try:
            console.print(
                f"report: {write(data, folder / 'report.html')}", soft_wrap=True
            )
        except MissingFramework as error:
            warn(error)
    console.print(f"history: {result.storage}", soft_wrap=True)
