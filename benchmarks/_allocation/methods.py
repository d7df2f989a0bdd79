"""Ways to give each layer a width: octavo's own, and the plain ones that they are held against."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import octavo
from octavo.core.errors import ConfigError
from octavo.core.sensitivity.service import SensitivityService

from .arithmetic import Allocation, average, least, uniform
from .bench import FLOAT, Axis, Bench

Losses = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Found:
    """What a method gave.

    Attributes:
        allocation: Layer -> label; None where nothing fits, or the method is not there.
        used: Bits a weight, as the method's own files have them.
        note: Why there is none, or what to know of it.
    """

    allocation: Allocation | None
    used: float = 0.0
    note: str = ""


Method = Callable[[Bench, Axis, float, Path], Found]
"""Allocates within a budget of bits a weight; the folder keeps scores between budgets."""


def found(bench: Bench, axis: Axis, allocation: Allocation | None) -> Found:
    """Return an allocation with what it uses in octavo's own files."""
    if allocation is None:
        return Found(None, note="nothing fits")
    layers = bench.layers(axis)
    if FLOAT in allocation.values() and not bench.subject.has_float:
        left = [name for name, label in allocation.items() if label == FLOAT]
        return Found(None, note=f"{len(left)} layers are left in float")
    return Found(allocation, average(layers, allocation))


def octavo_default(
    bench: Bench,
    axis: Axis,
    budget: float,
    folder: Path,
    *,
    rounding: str = "rtn",
    settings: Mapping[str, Any] | None = None,
) -> Found:
    """Run ``octavo.autotune`` with its ``budget`` strategy, everything else at its default."""
    subject = bench.subject
    limits: dict[str, Any] = {"bits": budget}
    if axis == "code":
        limits["bits_of"] = "codes"
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            result = octavo.autotune(
                subject.model,
                subject.score,
                list(subject.calibration),
                {
                    "rules": subject.rules(rounding),
                    "accuracy": {
                        "metric": "score",
                        "higher_is_better": False,
                        # No goal: the budget alone decides.
                        "mode": "absolute",
                        "tolerance": 1e6,
                        "noise_runs": 1,
                    },
                },
                budgets=limits,
                # The allocation alone is compared: nothing is learned after it.
                refine=[],
                strategy={"kind": "budget", **(settings or {})},
                storage=Path(place) / "history.db",
                sensitivities=folder / f"octavo-{rounding}.json",
                progress=False,
                arrays=True,
                simulated=True,
                backends=[subject.backend],
            )
        except ConfigError as error:
            return Found(None, note=str(error))
    made = found(bench, axis, bench.allocation(result.best.recipe))
    if made.allocation is None:
        return Found(None, note=f"{made.note}: {result.reason}")
    return Found(made.allocation, made.used, f"{len(result.trials)} trials")


def gradients(bench: Bench, axis: Axis, budget: float, folder: Path) -> Found:
    """Solve for the least sum of octavo's ``gradient`` scores."""
    realizer = bench.realizer("rtn")
    service = SensitivityService(
        bench.opened,
        realizer,
        bench.subject.calibration[:2],
        folder / "gradient.json",
    )
    if "gradient" not in service.kinds:
        return Found(None, note=f"no gradients on {bench.subject.backend}")
    pairs = [
        (layer.name, bench.choices(layer.name)[label])
        for layer in bench.layers(axis)
        for label in layer.bits
    ]
    scores = dict(zip(pairs, service("gradient", pairs), strict=True))
    service.save()
    losses = {
        layer.name: {
            label: scores[layer.name, bench.choices(layer.name)[label]]
            for label in layer.bits
        }
        for layer in bench.layers(axis)
    }
    return _solved(bench, axis, losses, budget)


def single_layers(bench: Bench, axis: Axis, budget: float, folder: Path) -> Found:
    """Solve for the least sum of true distances, each of one layer alone, on the calibration rows.

    The dearest way to ask: a run over the rows for every layer and width.
    """
    losses = _true_losses(bench)
    return _solved(bench, axis, losses, budget)


def _true_losses(bench: Bench) -> Losses:
    kept: Losses | None = bench.__dict__.get("_true_losses")
    if kept is not None:
        return kept
    realizer = bench.realizer("rtn")
    batches = bench.subject.calibration
    losses: dict[str, dict[str, float]] = {}
    for layer in bench.layers("code"):
        losses[layer.name] = {}
        for label in layer.bits:
            recipe = bench.recipe({layer.name: label}, "rtn")
            rows, _ = bench.measured(realizer.candidate(recipe, draft=True), batches)
            # Round-off of a float model against itself may fall below nothing.
            losses[layer.name][label] = max(0.0, sum(rows) / len(rows))
    bench.__dict__["_true_losses"] = losses
    return losses


def _solved(bench: Bench, axis: Axis, losses: Losses, budget: float) -> Found:
    layers = bench.layers(axis)
    try:
        return found(bench, axis, least(layers, losses, budget))
    except ConfigError as error:
        return Found(None, note=str(error))


def uniform_widths(bench: Bench, axis: Axis, budget: float, folder: Path) -> Found:
    """One width for all, the early layers wider."""
    return found(bench, axis, uniform(bench.layers(axis), budget))


OWN: Mapping[str, Method] = {
    "octavo": octavo_default,
    "octavo gptq": partial(octavo_default, rounding="gptq"),
    "gradient": gradients,
    "single layer": single_layers,
    "uniform": uniform_widths,
}
"""Name -> method; ``octavo gptq`` searches with the rounding that it is judged under."""
