"""What an allocation uses, and the allocations that need no model: uniform ones, and the least sum
of losses within a budget."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from octavo.core.numerics.knapsack import exact

Allocation = Mapping[str, str]
"""Layer -> label of its choice, which is its code's width (``"3"``; ``"32"`` is float)."""

SLACK = 1e-9  # sums of many floats may pass a limit that they meet


@dataclass(frozen=True)
class Layer:
    """What one layer may take.

    Attributes:
        name: Of the unit.
        parameters: Weights.
        bits: Label -> bits a weight, the narrowest first.
    """

    name: str
    parameters: int
    bits: Mapping[str, float]


def average(layers: Sequence[Layer], allocation: Allocation) -> float:
    """Return the bits a weight of an allocation, a mean over weights."""
    used = sum(
        layer.parameters * layer.bits[allocation[layer.name]] for layer in layers
    )
    return used / sum(layer.parameters for layer in layers)


def uniform(layers: Sequence[Layer], budget: float) -> dict[str, str] | None:
    """Return one width for all layers, the early ones wider as long as the budget lasts.

    The width is the widest that fits everywhere. Then, in execution order, a layer takes the next
    wider choice where that still fits.

    Returns:
        None where the narrowest choices do not fit.
    """
    labels = sorted({label for layer in layers for label in layer.bits}, key=int)
    every = [{x.name: _at_least(x, label) for x in layers} for label in labels]
    fitting = [a for a in every if average(layers, a) <= budget + SLACK]
    if not fitting:
        return None
    found = fitting[-1]
    wider = every[min(len(fitting), len(every) - 1)]
    for layer in layers:
        tried = {**found, layer.name: wider[layer.name]}
        if average(layers, tried) <= budget + SLACK:
            found = tried
    return found


def _at_least(layer: Layer, label: str) -> str:
    """Return a layer's narrowest choice of at least a width; the widest where there is none."""
    wide = [own for own in layer.bits if int(own) >= int(label)]
    return wide[0] if wide else list(layer.bits)[-1]


def least(
    layers: Sequence[Layer],
    losses: Mapping[str, Mapping[str, float]],
    budget: float,
) -> dict[str, str]:
    """Return the allocation of the least sum of losses within a budget, by integer programming.

    Args:
        layers: What may be taken.
        losses: Layer -> label -> loss.
        budget: Bits a weight.

    Raises:
        ConfigError: If the narrowest choices do not fit.
    """
    costs = [np.array([losses[x.name][label] for label in x.bits]) for x in layers]
    uses = [np.array([x.parameters * b for b in x.bits.values()]) for x in layers]
    most = budget * sum(layer.parameters for layer in layers)
    picks = exact(costs, [(uses, most * (1 + SLACK))])
    return {
        layer.name: list(layer.bits)[pick]
        for layer, pick in zip(layers, picks, strict=True)
    }


def log_ratio(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """Return how much more we lose, in percent, and its standard error.

    The mean of the rows' log ratios: rows differ far more than methods do.
    """
    logs = np.log(np.asarray(ours) / np.asarray(theirs))
    spread = float(logs.std(ddof=1)) / math.sqrt(len(logs)) if len(logs) > 1 else 0.0
    return 100 * math.expm1(float(logs.mean())), 100 * spread
