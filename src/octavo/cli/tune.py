"""``octavo tune``: the main job from the command line."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Literal

import typer

from .dry_run import plan_of_tune
from .face.again import again
from .face.failures import DONE
from .face.logs import logged
from .face.options import (
    GOAL,
    INPUT,
    OUTPUT,
    SEARCH,
    AsJson,
    BatchSize,
    Config,
    Data,
    Evaluate,
    Labels,
    LogFile,
    Model,
    Verbose,
    flag,
    option,
)
from .given.metrics import METRICS
from .given.scoring import Wanted
from .tune_job import begin_anew, prepared

EXAMPLES = """
octavo tune model.onnx --data samples.npz --metric accuracy
octavo tune model.onnx --data samples.npz -b onnx -b numpy --timeout 10min
octavo tune my_module:model --data samples.npz --evaluate my_module:score
octavo tune model.onnx --data samples.npz --json > outcome.json
"""

_METRIC = f"Score on --data: {', '.join(METRICS)}; or a name for --evaluate's."
_CALIBRATION = "Samples that calibrate (also module:name); left out: a part of --data."
_DIRECTION = "Direction of --evaluate's score, where its name does not say."
_MODE = "relative to float's score, or absolute."
_MINIMISE = "latency, size, ...; repeat it, the most important first."
_HOLDOUT = "Of the scored samples, kept to confirm the winner on."
_STOP = "goal: at the first recipe that passes; budget: use it up."
_BACKEND = "Search here, by name or with settings: onnx(threads=1); may be repeated."
_BASELINE = "Backend whose float model everything is measured against."
_RECOVER = "What the closest trials learn where none passes; may be repeated."
_TRAIN = "Trains the model it is given, where no trial passes."
_STORAGE = "History: a file or a database URL; left out: beside the output."
_RESUME = "Go on with the history that is there (the default), or refuse to."
_FRESH = "Set the history that is there aside, and begin anew."
_DRY_RUN = "Open and read everything, say what would be done, and end."
_REPORT = "Write report.html into the output folder (the default), or do not."


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("tune", epilog=EXAMPLES)(tune)


def tune(
    context: typer.Context,
    model: Model,
    data: Data = None,
    labels: Labels = None,
    calibration: Annotated[str | None, option(INPUT, "FILE", _CALIBRATION)] = None,
    calibration_size: Annotated[
        int, option(INPUT, "N", "Samples of --data that calibrate.", min=1)
    ] = 128,
    batch_size: BatchSize = 32,
    config: Config = None,
    metric: Annotated[str | None, option(GOAL, "NAME", _METRIC)] = None,
    evaluate: Evaluate = None,
    lower_is_better: Annotated[
        bool | None, flag(GOAL, _DIRECTION, "--lower-is-better/--higher-is-better")
    ] = None,
    tolerance: Annotated[
        float | None,
        option(GOAL, "SHARE", "Tolerated loss of the score [default: 0.01]."),
    ] = None,
    mode: Annotated[
        Literal["relative", "absolute"] | None, option(GOAL, "MODE", _MODE)
    ] = None,
    minimise: Annotated[list[str] | None, option(GOAL, "NAME", _MINIMISE)] = None,
    holdout: Annotated[float | None, option(GOAL, "SHARE", _HOLDOUT)] = None,
    backend: Annotated[
        list[str] | None,
        option(SEARCH, "NAME", _BACKEND, "--backend", "-b"),
    ] = None,
    baseline: Annotated[str | None, option(SEARCH, "NAME", _BASELINE)] = None,
    strategy: Annotated[
        str | None, option(SEARCH, "NAME", "How it searches; see octavo plugins.")
    ] = None,
    max_trials: Annotated[
        int | None, option(SEARCH, "N", "Evaluations after the float model's.")
    ] = None,
    timeout: Annotated[
        str | None, option(SEARCH, "TIME", "Limit of the search: 90s, 10min, 2h.")
    ] = None,
    stop: Annotated[
        Literal["goal", "budget"] | None, option(SEARCH, "WHEN", _STOP)
    ] = None,
    seed: Annotated[
        int | None, option(SEARCH, "N", "The only source of randomness.")
    ] = None,
    recover: Annotated[list[str] | None, option(SEARCH, "STEP", _RECOVER)] = None,
    train: Annotated[str | None, option(SEARCH, "MODULE:FUNCTION", _TRAIN)] = None,
    storage: Annotated[str | None, option(SEARCH, "FILE", _STORAGE)] = None,
    resume: Annotated[bool, flag(SEARCH, _RESUME, "--resume/--no-resume")] = True,
    fresh: Annotated[bool, flag(SEARCH, _FRESH, "--fresh")] = False,
    dry_run: Annotated[bool, flag(SEARCH, _DRY_RUN, "--dry-run")] = False,
    output: Annotated[
        Path | None,
        option(OUTPUT, "FOLDER", "Left out: MODEL-quantized.", "--output", "-o"),
    ] = None,
    report: Annotated[bool, flag(OUTPUT, _REPORT, "--report/--no-report")] = True,
    as_json: AsJson = False,
    quiet: Annotated[
        bool, flag(OUTPUT, "Print only the tables at the end.", "--quiet", "-q")
    ] = False,
    verbose: Verbose = 0,
    log_file: LogFile = None,
) -> None:
    """Find the smallest, fastest quantized version of MODEL that is still good enough."""
    asked = {
        "strategy": strategy,
        "tolerance": tolerance,
        "mode": mode,
        "minimise": minimise,
        "max_trials": max_trials,
        "timeout": timeout,
        "stop": stop,
        "seed": seed,
        "recover": tuple(recover) if recover else None,
        "backends": tuple(backend) if backend else None,
        "baseline": baseline,
        "metric": metric,
        "holdout": holdout,
        "higher_is_better": None if lower_is_better is None else not lower_is_better,
    }
    given = {name: value for name, value in asked.items() if value is not None}
    wanted = Wanted(data, evaluate, calibration, labels, batch_size, calibration_size)
    command = again(context.obj or ["tune", model])
    with ExitStack() as stack:
        stack.enter_context(logged(verbose, log_file))
        job = prepared(model, config, given, wanted, output, storage, train)
        if dry_run:
            plan_of_tune(job).tell(as_json)
            raise typer.Exit(DONE)
        if fresh:
            begin_anew(job.storage)
        # A log tells what the display would.
        is_quiet = quiet or verbose > 0
        ending = job.run(command, quiet=is_quiet, resume=resume)
        code = ending.tell(as_json=as_json, with_report=report)
    raise typer.Exit(code)
