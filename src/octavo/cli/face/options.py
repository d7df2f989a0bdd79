"""Options that several commands share, each described once, and the groups that help shows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

INPUT = "Model and data"
GOAL = "Score and goal"
SEARCH = "Search"
HOW = "How"
OUTPUT = "Output"
GROUPS = (INPUT, GOAL, SEARCH, HOW, OUTPUT)
"""In the order of the help."""


def option(group: str, metavar: str, text: str, *names: str, **more: Any) -> Any:
    """Return an option that takes a value.

    Args:
        group: Heading in the help.
        metavar: What stands for the value there.
        text: What it does.
        *names: How it is written, where that is not the parameter's name.
        **more: As for ``typer.Option``.
    """
    return typer.Option(
        *names, metavar=metavar, help=text, rich_help_panel=group, **more
    )


def flag(group: str, text: str, *names: str, **more: Any) -> Any:
    """Return an option without a value; as for :func:`option`."""
    return typer.Option(
        *names, help=text, rich_help_panel=group, show_default=False, **more
    )


def argument(metavar: str, text: str) -> Any:
    """Return an argument of a command."""
    return typer.Argument(metavar=metavar, help=text, rich_help_panel=INPUT)


_MODEL = "A model file (.onnx, .npz), or module:name of a Python object or a factory."
_SAMPLES = (
    "Samples: an .npz or a folder of .npy, one array per model input and one of labels."
)
_LABELS = "The array of labels in --data; known without it: labels, targets, y."
_CONFIG = "Configuration (.toml, .yaml, .json); options override it."
_BATCH = "Samples per call, in calibration, scoring and timing."
_FLOAT = "The float model (module:name), where a saved result does not hold it."

Model = Annotated[str, argument("MODEL", _MODEL)]
MaybeModel = Annotated[
    str | None, argument("MODEL", "Only what this model has; left out: everything.")
]
ResultFolder = Annotated[Path, argument("RESULT", "Folder of a saved result.")]
Data = Annotated[Path | None, option(INPUT, "FILE", _SAMPLES)]
Labels = Annotated[str | None, option(INPUT, "NAME", _LABELS)]
BatchSize = Annotated[int, option(INPUT, "N", _BATCH, min=1)]
Config = Annotated[Path | None, option(INPUT, "FILE", _CONFIG, "--config", "-c")]
Backend = Annotated[
    str | None,
    option(INPUT, "NAME", "Left out: the model's own.", "--backend", "-b"),
]
Autoload = Annotated[
    bool,
    flag(
        INPUT,
        "Load plugins of other distributions (the default), or do not.",
        "--autoload/--no-autoload",
    ),
]
FloatModel = Annotated[str | None, option(INPUT, "MODEL", _FLOAT, "--float")]
Evaluate = Annotated[
    str | None,
    option(GOAL, "MODULE:FUNCTION", "A score of yours, in place of a built-in one."),
]
AsJson = Annotated[
    bool, flag(OUTPUT, "Print one JSON object and nothing else.", "--json")
]
Verbose = Annotated[
    int,
    flag(OUTPUT, "Log what is done; -vv in detail.", "--verbose", "-v", count=True),
]
LogFile = Annotated[
    Path | None, option(OUTPUT, "FILE", "Log every detail to the end of this file.")
]
