"""Every place where a plugin may speak.

A registering hook takes no arguments and returns cards (:class:`~octavo.core.contract.parts.Part`),
never live objects: asking what exists must import no framework.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from octavo.core.values.trial import Trial

    from .parts import AdapterPart, Part

    Cards = Iterable[Part[Any]]

hookspec = pluggy.HookspecMarker("octavo")
hookimpl = pluggy.HookimplMarker("octavo")


@hookspec
def octavo_adapters() -> Iterable[AdapterPart[Any]]:  # type: ignore[empty-body]
    """Backends: open, describe, observe, quantize, run and save a model.

    Targets are ``Adapter`` classes.
    """


@hookspec
def octavo_strategies() -> Cards:  # type: ignore[empty-body]
    """Searches: ``ask`` and ``tell``.

    Targets are ``Strategy`` classes; they see a space and trials, never a model.
    """


@hookspec
def octavo_calibrators() -> Cards:  # type: ignore[empty-body]
    """Ways to turn observed values into ranges (minmax, percentile, mse, entropy).

    Targets are ``Calibrator`` classes.
    """


@hookspec
def octavo_algorithms() -> Cards:  # type: ignore[empty-body]
    """Ways to round a weight (rtn, gptq, hqq). Targets are ``WeightAlgorithm`` classes."""


@hookspec
def octavo_transforms() -> Cards:  # type: ignore[empty-body]
    """Function-preserving rescalings of the whole model (smoothquant, equalization).

    Targets are ``Rescaling`` classes.
    """


@hookspec
def octavo_objectives() -> Cards:  # type: ignore[empty-body]
    """Numbers measured on a candidate (latency, size, memory).

    Targets are ``Objective`` classes.
    """


@hookspec
def octavo_criteria() -> Cards:  # type: ignore[empty-body]
    """Judgements: is a candidate good enough. Targets are ``Criterion`` classes."""


@hookspec
def octavo_exporters() -> Cards:  # type: ignore[empty-body]
    """Ways to write a result for another runtime.

    Targets are callables ``(result, folder) -> None``.
    """


@hookspec
def octavo_trial_finished(trial: Trial) -> None:
    """Called after each trial, failed ones included, when it is already on disk.

    For loggers; return values are ignored.
    """
